"""Files: paths as a user types them, writes that survive a power cut, locks, and untrusted JSON.

Knows nothing of training, and needs no JAX."""

import contextlib
import errno
import fcntl
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cifar_jax.errors import UsageError

if TYPE_CHECKING:
    import jinja2

_MAX_BYTES = 1 << 24  # of a JSON file
_MAX_DIGITS = 20  # of an integer in it: those of 2**64
# The errors of file systems without locks: Lustre, some NFS, autofs, 9p.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO}
_warned_of: set[str] = set()


def _recipes() -> Path:
    installed = Path(__file__).with_name("configs")  # from a wheel
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


RECIPES = _recipes()  # the folder


def resolve(text: str | os.PathLike[str], what: str) -> Path:
    """The absolute path of what a user typed for `what`, a flag or field; `~` is a home folder.

    Raises UsageError for an empty one, for a URL, for control characters (a line break would break
    every message about it), and for the `~name` of an unknown user.
    """
    text = os.fspath(text)
    if not text.strip():
        raise UsageError(f"{what} is empty, expected a folder or file.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise UsageError(
            f"{what}={text} is a URL, expected a path. Mount it, or choose a folder of this "
            "machine's file systems."
        )
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise UsageError(f"{what}={text!r} has control characters, expected a path without them.")
    try:
        return Path(os.path.normpath(Path(text).expanduser().absolute()))
    except RuntimeError as error:
        raise UsageError(
            f"{what}={text}: there is no such home folder. Set $HOME, or name the whole path."
        ) from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Opens a file to read bytes from. An OSError has its path, also where a read fails after the
    file was opened, as at a bad sector: the system's own error does not then."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def template(path: Path, **filters: Callable[[Any], str]) -> "jinja2.Template":
    """The Jinja template of a page of HTML. What it is given is escaped, and what it is not given
    is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name)


# -- writing -------------------------------------------------------------------------------------


def no_links(path: str, flags: int) -> int:
    """An `opener` for `open` that does not follow a symbolic link (OSError, ELOOP)."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def write(path: Path, content: str | bytes) -> None:
    """Writes the file whole or not at all, and returns when it would survive a power cut.

    Raises OSError; the previous content is untouched then.
    """
    part = path.with_name(f"{path.name}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        part.unlink(missing_ok=True)  # left by a killed process, or a link
        with open(part, "xb", opener=no_links) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when the file, or the names in the folder, would survive a power cut.

    Raises OSError, but not for a file system that cannot sync folders (some network ones).
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for all files and folders below, and for `folder`."""
    for below, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(below, name))
        sync(Path(below))


def lock(handle: int, path: Path, *, wait: bool = True, shared: bool = False) -> None:
    """Takes a lock on the open file or folder `handle`, held until it is closed: an exclusive one,
    or one that it can share with others.

    Without `wait`, raises BlockingIOError where another process holds it. Where the file system
    does not support locks it warns once, with `path`, and goes on.
    """
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if not _warned_of:
            print(
                f"{path}: this file system does not support locks ({error.strerror}). Make sure "
                "that only one run writes to that folder.",
                file=sys.stderr,
                flush=True,
            )
        _warned_of.add(str(path))


def is_at(path: Path, handle: int) -> bool:
    """Whether the open file `handle` is still the one at `path`: a lock on a file that its previous
    holder has deleted meanwhile guards nothing."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


# -- JSON ----------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The JSON in the file `path`. Raises OSError where it cannot be read, and as `parse_json`."""
    with opened(path) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    return parse_json(data)


def parse_json(text: str | bytes) -> Any:
    """Parses JSON. Raises ValueError where it is invalid, nested without end, or has integers of
    more than `_MAX_DIGITS` digits or NaN."""
    try:
        return json.loads(text, parse_int=_whole_number, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
