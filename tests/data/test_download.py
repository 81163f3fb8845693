"""Downloads from a server in this process that drops, refuses and lies on request."""

import dataclasses
import errno
import fcntl
import hashlib
import http.server
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cifar_jax.data import download
from cifar_jax.data.download import Archive, File, ensure, ensure_file
from cifar_jax.errors import UserError
from tests.conftest import ROOT

CONTENT = bytes(range(256)) * 256  # 64 KiB in the archive's one file


def make_tar(member: str = "batches/train.bin") -> bytes:
    """An uncompressed tar, so that its length does not depend on zlib's version."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` under every path; `ranges` are the Range headers that came, None where none."""

    daemon_threads = True

    def __init__(self, body: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.ranges: list[str | None] = []
        self.honours_ranges = True
        self.length: str | None = None  # what Content-Length says instead
        self.refusals: list[int] = []  # of the first requests
        self.drops: list[int] = []  # the nth response breaks after drops[n] bytes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/batches.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        requested = self.headers["Range"]
        server.ranges.append(requested)
        if server.refusals:
            self.send_error(server.refusals.pop(0))
            return
        offset = 0
        if requested and server.honours_ranges:
            offset = int(requested.removeprefix("bytes=").removesuffix("-"))
        if offset and offset >= len(server.body):
            self.send_error(416)
            return
        body = server.body[offset:]
        self.send_response(206 if offset else 200)
        self.send_header(
            "Content-Length", str(len(body)) if server.length is None else server.length
        )
        self.end_headers()
        self.wfile.write(body[: server.drops.pop(0)] if server.drops else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def direct_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "RETRY_SECONDS", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(make_tar()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(server: Server) -> Archive:
    digest = hashlib.sha256(server.body).hexdigest()
    return Archive(server.url, len(server.body), digest, "batches")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_complete(data_dir: Path) -> None:
    """Only the unpacked folder is there: no archive, .part, lock or temporary folder."""
    assert listing(data_dir) == ["batches"]
    assert (data_dir / "batches/train.bin").read_bytes() == CONTENT


def test_downloads_into_a_folder_it_makes(archive: Archive, tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    assert ensure(archive, data_dir) == data_dir / "batches"
    check_complete(data_dir)


def test_existing_folder_may_be_read_only(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.delattr(download, "_lock")  # whose file could not be made there
    (tmp_path / "batches").mkdir()
    assert ensure(archive, tmp_path) == tmp_path / "batches"


def test_size_may_be_unknown(archive: Archive, tmp_path: Path) -> None:
    ensure(dataclasses.replace(archive, size=None), tmp_path)
    check_complete(tmp_path)


def test_broken_connection_is_resumed_where_it_stopped(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    server.drops = [1000, 500]
    ensure(archive, tmp_path)
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-"]
    check_complete(tmp_path)


def test_next_start_resumes_the_part(archive: Archive, server: Server, tmp_path: Path) -> None:
    (tmp_path / "batches.tar.part").write_bytes(server.body[:300])
    ensure(archive, tmp_path)
    assert server.ranges == ["bytes=300-"]
    check_complete(tmp_path)


def test_server_that_ignores_ranges_sends_it_all_again(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    server.honours_ranges = False
    server.drops = [1000]
    ensure(archive, tmp_path)
    assert server.ranges == [None, "bytes=1000-"]
    check_complete(tmp_path)


def test_complete_part_needs_no_network(
    archive: Archive, server: Server, tmp_path: Path, no_network: None
) -> None:
    (tmp_path / "batches.tar.part").write_bytes(server.body)
    ensure(archive, tmp_path)
    check_complete(tmp_path)


def test_wrong_part_of_full_length_starts_again(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "batches.tar.part").write_bytes(bytes(len(server.body)))
    ensure(archive, tmp_path)
    assert server.ranges == [f"bytes={len(server.body)}-", None]
    check_complete(tmp_path)


def test_gives_up_on_a_connection_that_keeps_breaking(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    server.drops = [1] * 100
    with pytest.raises(UserError, match="broke after 6 of .* Start again to resume"):
        ensure(archive, tmp_path)
    assert len(server.ranges) == download.ATTEMPTS
    assert (tmp_path / "batches.tar.part").read_bytes() == server.body[: download.ATTEMPTS]


def test_wrong_checksum_leaves_nothing(archive: Archive, server: Server, tmp_path: Path) -> None:
    server.body = bytes(len(server.body))
    with pytest.raises(UserError) as caught:
        ensure(archive, tmp_path)
    found = hashlib.sha256(server.body).hexdigest()
    for part in (archive.url, found, archive.sha256, str(tmp_path)):
        assert part in str(caught.value)
    assert listing(tmp_path) == []


def test_archive_put_by_hand_is_used_and_kept(
    archive: Archive, server: Server, tmp_path: Path, no_network: None
) -> None:
    (tmp_path / "batches.tar").write_bytes(server.body)
    assert ensure(archive, tmp_path) == tmp_path / "batches"
    assert listing(tmp_path) == ["batches", "batches.tar"]


@pytest.mark.parametrize("wrong", [b"too short", bytes(len(make_tar()))], ids=["size", "digest"])
def test_wrong_archive_put_by_hand_is_left_alone(
    archive: Archive, tmp_path: Path, no_network: None, wrong: bytes
) -> None:
    by_hand = tmp_path / "batches.tar"
    by_hand.write_bytes(wrong)
    if len(wrong) == archive.size:
        found, expected = hashlib.sha256(wrong).hexdigest(), archive.sha256
    else:
        found, expected = "9 bytes", str(archive.size)
    with pytest.raises(UserError) as caught:
        ensure(archive, tmp_path)
    for part in (str(by_hand), found, expected, "Delete it", archive.url):
        assert part in str(caught.value)
    assert by_hand.read_bytes() == wrong


def test_offline_error_is_quick_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "RETRY_SECONDS", 2.0)
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    archive = Archive(f"http://127.0.0.1:{port}/batches.tar", 1, "", "batches")
    with pytest.raises(UserError) as caught:
        ensure(archive, tmp_path)
    message = str(caught.value)
    for part in (archive.url, "refused", str(tmp_path), "Put batches.tar", "configs/quickstart.py"):
        assert part in message
    assert "\n" not in message
    assert time.monotonic() - start < 1
    assert listing(tmp_path) == []


def test_name_lookup_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answered.wait())
    monkeypatch.setattr(download, "OPEN_SECONDS", 0.05)
    start = time.monotonic()
    with pytest.raises(UserError, match="no answer within 0.05 s"):
        ensure(Archive("http://example.invalid/batches.tar", 1, "", "batches"), tmp_path)
    assert time.monotonic() - start < 1
    answered.set()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (make_tar("../escaped"), "outside the destination"),
        (make_tar("other/train.bin"), "no folder batches, but other"),
        (b"not a tar archive", "Cannot unpack"),
        (make_tar()[:9000], "Cannot unpack"),
    ],
    ids=["outside", "other-folder", "no-tar", "truncated"],
)
def test_bad_tar_leaves_nothing(tmp_path: Path, body: bytes, reason: str) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "batches.tar").write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    with pytest.raises(UserError, match=reason):
        ensure(Archive("http://127.0.0.1/batches.tar", None, digest, "batches"), data_dir)
    assert listing(data_dir) == ["batches.tar"]
    assert listing(tmp_path) == ["data"]


def test_interrupted_unpacking_leaves_nothing(
    archive: Archive, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tar: tarfile.TarFile, path: str, **_: object) -> None:
        Path(path, "batches").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extractall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure(archive, tmp_path)
    assert listing(tmp_path) == ["batches.tar.part"]


def test_full_disk_is_an_error_the_user_can_mend(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "extractall", fill)
    with pytest.raises(UserError, match=f"{tmp_path}: .*No space left"):
        ensure(archive, tmp_path)


def test_data_dir_that_is_a_file(archive: Archive, tmp_path: Path, no_network: None) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(UserError, match=f"Cannot store batches in {tmp_path}/data"):
        ensure(archive, tmp_path / "data")


def test_a_file_is_verified_and_kept(server: Server, tmp_path: Path) -> None:
    file = File(server.url, hashlib.md5(server.body).hexdigest())
    assert ensure_file(file, tmp_path / "new").read_bytes() == server.body
    assert listing(tmp_path / "new") == ["batches.tar"]
    ensure_file(file, tmp_path / "new")
    assert len(server.ranges) == 1
    with pytest.raises(UserError, match=f"its MD5 is {file.md5}, expected 0. It is deleted"):
        ensure_file(File(server.url, "0"), tmp_path / "other")
    assert listing(tmp_path / "other") == []


def test_a_broken_download_of_a_file_is_resumed(server: Server, tmp_path: Path) -> None:
    server.drops = [1_000]
    file = File(server.url, hashlib.md5(server.body).hexdigest())
    assert ensure_file(file, tmp_path).read_bytes() == server.body
    assert server.ranges == [None, "bytes=1000-"]


def test_simultaneous_calls_download_once(archive: Archive, server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: ensure(archive, tmp_path), range(8)))
    assert folders == [tmp_path / "batches"] * 8
    assert server.ranges == [None]
    check_complete(tmp_path)


def test_lock_on_a_deleted_file_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    entered = threading.Event()

    def wait_for_lock() -> None:
        with download._lock(path):
            entered.set()

    waiter = threading.Thread(target=wait_for_lock)
    with path.open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        waiter.start()
        time.sleep(0.05)  # Now it waits on the first file.
        path.unlink()
        second = download._lock(path)
        second.__enter__()
    assert not entered.wait(0.05)
    second.__exit__(None, None, None)
    assert entered.wait(5)
    waiter.join()


def test_folder_of_another_process_is_kept(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = tarfile.TarFile.extractall

    def outpaced(tar: tarfile.TarFile, path: str, **options: Any) -> None:
        unpack(tar, path, filter="data")
        unpack(tar, tmp_path, filter="data")

    monkeypatch.setattr(tarfile.TarFile, "extractall", outpaced)
    ensure(archive, tmp_path)
    check_complete(tmp_path)


def test_progress_in_a_pipe_is_a_line_every_tenth(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
    ensure(archive, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"Downloading {archive.url} to {tmp_path}"
    assert lines[1] == f"batches.tar: 10% of {archive.size} bytes"
    assert lines[-1] == f"batches.tar: 100% of {archive.size} bytes"
    assert len(lines) == 11


def test_a_server_that_sends_without_end_is_left(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    server.body += bytes(50 << 20)
    server.length = "abc"
    with pytest.raises(UserError, match=r"expected file: it has \d+ bytes, expected \d+"):
        ensure(archive, tmp_path)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 40, ""])
def test_a_length_that_is_none_is_passed_over(
    archive: Archive, server: Server, tmp_path: Path, length: str
) -> None:
    server.length = length
    ensure(archive, tmp_path)
    check_complete(tmp_path)


def test_a_server_that_is_busy_at_first_is_asked_again(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    server.refusals = [503, 429]
    ensure(archive, tmp_path)
    check_complete(tmp_path)
    assert len(server.ranges) == 3


def test_remains_of_a_killed_unpacking_are_removed(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    (tmp_path / ".batches-abcd1234" / "batches").mkdir(parents=True)
    ensure(archive, tmp_path)
    check_complete(tmp_path)


def test_a_planted_link_is_not_written_through(
    archive: Archive, server: Server, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("batches.tar.part", "batches.tar.lock"):
        (data / name).symlink_to(precious)
        with pytest.raises(UserError, match="Cannot store"):
            ensure(archive, data)
        (data / name).unlink()
    assert precious.read_text() == "mine"


def test_names_that_contradict_each_other_are_the_archives_fault(tmp_path: Path) -> None:
    path = tmp_path / "batches.tar"
    for names in (("batches/x", "batches"), ("batches", "batches/x")):
        with tarfile.open(path, "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(UserError, match="Cannot unpack|holds no folder"):
            download._unpack(path, tmp_path / "batches")


def test_archives_of_a_stranger(tmp_path: Path) -> None:
    for change in (
        {"name": "batches/x", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "../outside"},
        {"name": "batches/x", "size": 1 << 40},
    ):
        path = tmp_path / "batches.tar"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("batches/x")
            for field, value in change.items():
                setattr(member, field, value)
            tar.fileobj.write(member.tobuf())  # addfile would want the content
        with pytest.raises(UserError, match="Cannot unpack") as caught:
            download._unpack(path, tmp_path / "batches")
        assert "\n" not in str(caught.value)
        path.unlink()
        assert listing(tmp_path) == []


DOWNLOAD = """
import os, signal, sys, tarfile
from pathlib import Path
from cifar_jax.data import download
url, size, digest, folder, fault = sys.argv[1:]
if fault == "unpacking":
    extract = tarfile.TarFile.extractall
    def killed(tar, path, **options):
        extract(tar, path, filter="data")
        os.kill(os.getpid(), signal.SIGKILL)
    tarfile.TarFile.extractall = killed
elif fault == "receiving":
    download.CHUNK_BYTES = 16
    read = download._read
    def killed(response, chunks=[]):
        chunks.append(1)
        return os.kill(os.getpid(), signal.SIGKILL) if len(chunks) > 5 else read(response)
    download._read = killed
download.ensure(download.Archive(url, int(size), digest, "batches"), Path(folder))
"""


@pytest.mark.parametrize(("fault", "left"), [("receiving", ".part"), ("unpacking", ".batches-")])
def test_a_kill_at_any_point_costs_nothing(
    archive: Archive, server: Server, tmp_path: Path, fault: str, left: str
) -> None:
    command = [sys.executable, "-c", DOWNLOAD, archive.url, str(archive.size), archive.sha256]
    killed = subprocess.run([*command, str(tmp_path), fault], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any(left in name for name in listing(tmp_path))
    assert not (tmp_path / "batches").exists()
    again = subprocess.run([*command, str(tmp_path), ""], cwd=ROOT, capture_output=True)
    assert again.returncode == 0, again.stderr
    check_complete(tmp_path)
