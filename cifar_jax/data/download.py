"""Fetches a file or an archive with progress, verifies it, and unpacks an archive safely.

Interruptions at any moment (Ctrl-C, a lost connection, a killed job) are safe: the final file or
folder appears by one rename, so it is either complete or absent, and a partial download is resumed
by the next start.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import glob
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, Progress

from cifar_jax import files
from cifar_jax.errors import UserError, reason

ATTEMPTS = 6  # connections to one archive, the first one included
RETRY_SECONDS = 1.0  # before the first retry; grows by as much with each one
OPEN_SECONDS = 5.0  # for name look-up, connection and the server's first answer together
SOCKET_SECONDS = 5.0  # without a byte, after which a connection counts as lost
CHUNK_BYTES = 1 << 18
MAX_BYTES = 1 << 31  # of what has no known size
_UNPACKED = 8  # times the archive, at most: a tar bomb is refused
_MEMBERS = 10_000
# Errors of names that contradict each other, and tarfile's own errors, which have no number.
_ARCHIVE_ERRNOS = {None, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}

_ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}  # as people write them

Report = Callable[[int, int | None], None]  # bytes done, bytes in total where known


class _Published:
    """What a file and an archive have in common."""

    url: str
    size: int | None  # bytes; None when only the digest is known

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def digest(self) -> tuple[str, str]:
        """The algorithm, as hashlib has it, and the digest in hexadecimal."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Archive(_Published):
    """A tar archive on the web."""

    url: str
    size: int | None
    sha256: str
    folder: str  # what the archive unpacks to, e.g. "cifar-10-batches-bin"

    @property
    def digest(self) -> tuple[str, str]:
        return "sha256", self.sha256


@dataclasses.dataclass(frozen=True)
class File(_Published):
    """A file on the web that is used as it is."""

    url: str
    md5: str  # where its publisher's users know no other: against accidents, not against attacks
    size: int | None = None

    @property
    def digest(self) -> tuple[str, str]:
        return "md5", self.md5


class NetworkError(Exception):
    """No connection, or a broken one. `status` is the HTTP status where a server refused."""

    def __init__(self, reason: BaseException | str, status: int | None = None):
        # The operating system's and the TLS library's messages may span lines.
        super().__init__(" ".join(str(reason).split()))
        self.status = status


def ensure(archive: Archive, data_dir: Path) -> Path:
    """Returns `data_dir / archive.folder`, downloaded and unpacked first where it is missing.

    An archive file that the user put into `data_dir` is used instead of the network, and kept; a
    downloaded one is deleted once unpacked. Processes that call this at the same time wait for the
    one that came first.

    Raises:
        UserError: no network, a file with the wrong size or checksum, an archive that doesn't
            unpack to the folder, or a disk that is full or not writable.
    """
    folder = data_dir / archive.folder
    if folder.is_dir():
        return folder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(data_dir / f"{archive.name}.lock"):
            if not folder.is_dir():
                _obtain(archive, data_dir)
    except OSError as error:
        raise UserError(
            f"Cannot store {archive.folder} in {data_dir}: {reason(error)}. "
            "Expected a writable folder with free space: make one there or choose another."
        ) from error
    return folder


def ensure_file(file: File, data_dir: Path) -> Path:
    """Returns `data_dir / file.name`, downloaded and verified first where it is missing.

    One that is there is taken as it is. Processes that call this at the same time wait for the one
    that came first. Raises UserError as `ensure` does.
    """
    path = data_dir / file.name
    if path.exists():
        return path
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(data_dir / f"{file.name}.lock"):
            if not path.exists():
                _fetch(file, data_dir).replace(path)
                files.sync(data_dir)
    except OSError as error:
        raise UserError(
            f"Cannot store {file.name} in {data_dir}: {reason(error)}. "
            "Expected a writable folder with free space: make one there or choose another."
        ) from error
    return path


def open_url(url: str, offset: int = 0) -> http.client.HTTPResponse:
    """Opens `url` at byte `offset`; answers or fails within OPEN_SECONDS, DNS included.

    A server that cannot resume answers with status 200 and the whole file instead of 206.

    Raises:
        NetworkError: no connection, or a refusal (`status`).
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    answer: concurrent.futures.Future[http.client.HTTPResponse] = concurrent.futures.Future()

    def work() -> None:
        try:
            answer.set_result(urllib.request.urlopen(request, timeout=SOCKET_SECONDS))
        except Exception as error:
            answer.set_exception(error)

    # A name look-up heeds no timeout and cannot be interrupted, only left behind: hence a daemon.
    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(OPEN_SECONDS)
    except urllib.error.HTTPError as error:
        raise NetworkError(error, status=error.code) from error
    except urllib.error.URLError as error:
        raise NetworkError(error.reason) from error
    except TimeoutError as error:
        raise NetworkError(f"no answer within {OPEN_SECONDS:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(error) from error


def _obtain(archive: Archive, data_dir: Path) -> None:
    """Makes `archive.folder` from the file put there by hand, or else from a download."""
    by_hand = data_dir / archive.name
    if by_hand.exists():
        if problem := _problem(by_hand, archive):
            raise UserError(
                f"{by_hand} is not the expected archive: {problem}. "
                f"Delete it and start again, or fetch it from {archive.url}."
            )
        _unpack(by_hand, data_dir / archive.folder)
        return
    # The download keeps its .part name to the end, so that an archive without it is always one
    # that the user put there, and is never deleted.
    part = _fetch(archive, data_dir)
    _unpack(part, data_dir / archive.folder)
    part.unlink()


def _fetch(archive: Archive | File, data_dir: Path) -> Path:
    """Downloads and verifies; the file still has its .part name."""
    part = data_dir / f"{archive.name}.part"
    _download(archive, part)
    if problem := _problem(part, archive):
        part.unlink()
        raise UserError(
            f"{archive.url} sent something else than the expected file: {problem}. It is "
            f"deleted: start again, or put {archive.name} from elsewhere into {data_dir}."
        )
    return part


def _problem(file: Path, archive: Archive | File) -> str | None:
    """Says how `file` differs from the archive in size or digest; None where it doesn't."""
    size = file.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"it has {size} bytes, expected {archive.size}"
    with file.open("rb") as stream:
        algorithm, expected = archive.digest
        digest = hashlib.file_digest(stream, algorithm).hexdigest()
    if digest != expected:
        return f"its {_ALGORITHMS[algorithm]} is {digest}, expected {expected}"
    return None


def _download(archive: Archive | File, part: Path) -> None:
    """Completes `part`, whatever it already holds; reconnects where the connection breaks."""
    if part.exists() and not _problem(part, archive):
        return
    connected = False
    reason: NetworkError | None = None
    with _progress(archive, part.parent) as report:
        for attempt in range(ATTEMPTS):
            time.sleep(attempt * RETRY_SECONDS)
            offset = part.stat().st_size if part.exists() else 0
            try:
                with open_url(archive.url, offset) as response:
                    connected = True
                    _receive(response, part, offset, archive.size or MAX_BYTES, report)
                return
            except NetworkError as error:
                reason = error
                if error.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink()  # It is as long as the archive, or longer, and wrong.
                elif not connected and not _may_pass(error):
                    break
    remedy = "Start again to resume it, or put" if connected else "Put"
    raise UserError(
        f"Cannot download {archive.url}: {reason}. {remedy} {archive.name} into {part.parent} "
        "by hand, or train without a download: --config=configs/quickstart.py."
    ) from reason


def _may_pass(error: NetworkError) -> bool:
    """Whether a server that answers so may answer otherwise in a moment."""
    return error.status is not None and (error.status >= 500 or error.status == 429)


def _receive(
    response: http.client.HTTPResponse, part: Path, offset: int, most: int, report: Report
) -> None:
    """Writes the response to `part` from byte `offset`, or from 0 where the server sent it all; up
    to `most` bytes and what shows that there are more."""
    resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
    done = offset if resumed else 0
    length = response.headers["Content-Length"] or ""
    total = done + int(length) if length.isdecimal() and len(length) < 19 else None
    with open(part, "ab" if resumed else "wb", opener=files.no_links) as file:
        while done <= most and (chunk := _read(response)):
            file.write(chunk)
            file.flush()  # so that a connection which soon breaks has brought something
            done += len(chunk)
            report(done, total)
        os.fsync(file.fileno())
    # http.client ends a read at a broken connection as it does at the end of the file.
    if total is not None and done < min(total, most + 1):
        raise NetworkError(f"the connection broke after {done} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    # Apart from the writing, whose errors are OSErrors too, but the disk's.
    try:
        return response.read1(CHUNK_BYTES)  # what has come, without waiting for a whole chunk
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(error) from error


@contextlib.contextmanager
def _progress(archive: Archive | File, data_dir: Path) -> Iterator[Report]:
    """Shows a download on stderr: a bar on a terminal, a line every 10% elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (*Progress.get_default_columns(), DownloadColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(archive.name, total=archive.size)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    shown = 0

    def report(done: int, total: int | None) -> None:
        nonlocal shown
        tenths = 10 * done // total if total else 0
        if tenths > shown:
            print(f"{archive.name}: {10 * tenths}% of {total} bytes", file=sys.stderr, flush=True)
        shown = max(shown, tenths)

    print(f"Downloading {archive.url} to {data_dir}", file=sys.stderr, flush=True)
    yield report


def _checked_members(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of an archive of `size` bytes. Raises TarError at a link, and where they are far
    more or larger than a dataset's."""
    total = 0
    for number, member in enumerate(tar):
        total += member.size
        if member.islnk() or member.issym():
            raise tarfile.TarError(f"{member.name} is a link")
        if number >= _MEMBERS or total > max(_UNPACKED * size, 1 << 20):
            raise tarfile.TarError("it unpacks to far more than its size")
        yield member


def _unpack(file: Path, folder: Path) -> None:
    """Unpacks the tar archive `file`, which must hold `folder.name`: all of it, or nothing.

    Under the lock, so that what a killed process has left there can be removed.
    """
    for remains in folder.parent.glob(f".{glob.escape(folder.name)}-*"):
        shutil.rmtree(remains, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        try:
            with tarfile.open(file) as tar:
                # "data" refuses members that would land outside, and devices.
                members = _checked_members(tar, file.stat().st_size)
                tar.extractall(temporary, members=members, filter="data")
        except (tarfile.TarError, EOFError, zlib.error, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _ARCHIVE_ERRNOS:
                raise  # the disk's, and not the archive's
            raise UserError(
                f"Cannot unpack {file}: {reason(error)}. Expected a tar archive with "
                f"{folder.name}/ in it: "
                "compare its URL and SHA-256 with the publisher's."
            ) from error
        files.sync_tree(Path(temporary))
        unpacked = Path(temporary, folder.name)
        if not unpacked.is_dir():
            found = ", ".join(sorted(path.name for path in Path(temporary).iterdir()))
            raise UserError(
                f"{file} holds no folder {folder.name}, but {found or 'nothing'}. "
                "Name one of these as the archive's folder."
            )
        try:
            unpacked.rename(folder)
            files.sync(folder.parent)
        except OSError:
            if not folder.is_dir():  # Otherwise another process was first, with the same content.
                raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds `path` as a lock between processes, and deletes it afterwards."""
    while True:
        with open(path, "w", opener=files.no_links) as file:
            # Where there are no locks, two downloads at once can spoil the .part, which its
            # checksum reveals.
            files.lock(file.fileno(), path)
            if not files.is_at(path, file.fileno()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
