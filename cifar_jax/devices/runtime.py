"""What must happen before JAX starts. Imports nothing heavy, and never JAX itself."""

import contextlib
import ctypes
import importlib.util
import logging
import mmap
import os
import sys
from pathlib import Path

# Takes convolutions on CPUs back from YNNPACK, which runs them 1.7 to 3.3 times slower.
_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_CPU_VALUE = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"

_SWITCHES = (
    *("JAX_ENABLE_X64", "JAX_DISABLE_JIT", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE"),
    *("JAX_NUMPY_RANK_PROMOTION", "JAX_TRANSFER_GUARD"),
)

_log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>
_INT_MAX = 2**31 - 1


def start(debug: bool = False) -> None:
    """Sets up the environment for JAX, which must not be imported yet. What the user has set stays.

    Compiled steps are cached between starts. Flag and allocator concern CPUs alone; a GPU's run
    does not notice them. With `debug`, says what was set; without, the libraries' own logs of what
    is reported in a line here are silent.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("cifar_jax").setLevel(logging.DEBUG if debug else logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING if debug else logging.CRITICAL)
    _unset_switches()
    _cache_compilations()
    _set_cpu_flag()
    _keep_memory()


def _unset_switches() -> None:
    """Ignores settings with which a config would give other numbers, or every run an error."""
    for name in _SWITCHES:
        if value := os.environ.pop(name, ""):
            print(
                f"{name}={value} is ignored: with it, a run would not be what its config says.",
                file=sys.stderr,
                flush=True,
            )


def _cache_compilations() -> None:
    with contextlib.suppress(RuntimeError):  # a user without a home, as in containers
        folder = Path("~/.cache/cifar_jax/compiled").expanduser()
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    _log.debug("Compiled steps are kept in %s", os.environ.get("JAX_COMPILATION_CACHE_DIR"))


def _set_cpu_flag() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if _CPU_FLAG in flags:
        return
    # XLA ends the process over a flag that it does not know, so the library is asked first.
    if _library_contains(_CPU_FLAG.removeprefix("--").encode(), _CPU_VALUE.encode()):
        os.environ["XLA_FLAGS"] = f"{flags} {_CPU_FLAG}={_CPU_VALUE}".strip()
        _log.debug("XLA_FLAGS=%s", os.environ["XLA_FLAGS"])
    else:
        _log.debug("This jaxlib does not know %s: convolutions stay as they are.", _CPU_FLAG)


def _library_contains(*words: bytes) -> bool:
    spec = importlib.util.find_spec("jaxlib")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("libjax_common.*"):
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                return all(data.find(word) >= 0 for word in words)
    return False


def _keep_memory() -> None:
    """Has glibc keep what XLA frees: its buffers come anew at every step, 10–25% of it on a CPU.

    And has all threads share one heap: the others end at 64 MB, and XLA's larger buffers would be
    mapped, filled with zeros and unmapped at every step (an evaluation at batch 512 took 1.3 times
    as long).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        _log.debug("No mallopt here: the allocator stays as it is.")
        return
    settings = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _INT_MAX, _M_TRIM_THRESHOLD: _INT_MAX}
    for parameter, value in settings.items():
        if not mallopt(parameter, value):
            _log.debug("mallopt refused parameter %d.", parameter)
