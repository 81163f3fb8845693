"""The operations of `kernels.cc` on CPUs: in float32, and in bfloat16 where there are instructions
for it.

Optional: `pip install 'cifar_jax[onednn]'` brings oneDNN, and a C++ compiler makes the rest, once,
at the first use. `usable()` says whether all of that is here; where it isn't, `reason()` says why.
"""

import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax

from cifar_jax.ops import portable

_SOURCE = Path(__file__).with_name("kernels.cc")
_TARGETS = (
    *("conv_forward", "conv_backward_data", "conv_backward_kernel"),
    *("max_pool", "max_pool_forward", "max_pool_backward"),
    *("relu_lrn_forward", "relu_lrn_backward"),
    *("moments", "norm_gelu_forward", "norm_gelu_sums", "norm_gelu_backward"),
)
_DTYPES = "bfloat16", "float32"
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w"),
    # As fast as -ffast-math here, but with NaN and infinity as they are.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}


class Unusable(Exception):
    """What is missing, in a few words."""


def usable(dtype: str) -> bool:
    return reason(dtype) is None


def wanted(x: jax.Array) -> bool:
    """Whether an operation on `x` is one of these."""
    return x.dtype.name in _DTYPES and not portable.wanted() and usable(x.dtype.name)


def reason(dtype: str) -> str | None:
    """Why these operations cannot be used here; None where they can, and are then loaded."""
    if jax.default_backend() != "cpu":
        return "not a CPU"
    if dtype == "bfloat16" and not _INSTRUCTIONS & _cpu_flags():
        return "this CPU has no instructions for bfloat16 (AVX512_BF16 or AMX)"
    return _load()


@cache
def _load() -> str | None:
    """What is missing, if anything."""
    try:
        # Or OpenMP's threads would spin between two operations on the cores that XLA's work on.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        library = ctypes.CDLL(str(_compiled()))
    except (Unusable, OSError, RuntimeError) as error:  # the last: a user without a home
        return str(error)
    for name in (f"cifar_jax_{each}_{dtype}" for each in _TARGETS for dtype in _DTYPES):
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return None


def call(name: str, results: Any, *args: jax.Array, **attributes: Any) -> Any:
    """The operation `name` of kernels.cc, in the dtype of the first argument. `results`: a type as
    `jax.typeof` has it, or several."""
    target = f"cifar_jax_{name}_{args[0].dtype}"
    return jax.ffi.ffi_call(target, results, vmap_method="sequential")(*args, **attributes)


def _compiled() -> Path:
    """The library, compiled where it is not in the cache. Raises Unusable."""
    headers, onednn = _onednn()
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise Unusable("no C++ compiler is installed (c++, g++ or $CXX)")
    command = [
        *(compiler, *_FLAGS, str(_SOURCE)),
        *(f"-I{jax.ffi.include_dir()}", f"-I{headers}", str(onednn), f"-Wl,-rpath,{onednn.parent}"),
    ]
    # Another machine that shares the cache may have other instructions.
    key = repr((command, jax.__version__, sorted(_cpu_flags()))).encode() + _SOURCE.read_bytes()
    folder = Path("~/.cache/cifar_jax/native").expanduser()
    library = folder / f"{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not library.exists():
        print("Compiling cifar_jax's operations for this CPU, once: about 10 s.", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / library.name
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no output"]
                first = next((line for line in lines if "error" in line), lines[-1])
                raise Unusable(f"{compiler} failed: {first}")
            made.rename(library)  # whole or not at all, whoever else compiles it now
    return library


def _onednn() -> tuple[Path, Path]:
    """The folder of its headers, and its library."""
    found = []
    for package, name in (
        ("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp"),
        ("onednn-cpu-gomp", "libdnnl.so.3"),
    ):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        paths = [Path(str(file.locate())).resolve() for file in files if str(file).endswith(name)]
        if not paths or not paths[0].is_file():
            raise Unusable("oneDNN is not installed: pip install 'cifar_jax[onednn]'")
        found.append(paths[0])
    header, library = found
    return header.parents[2], library


@cache
def _cpu_flags() -> set[str]:
    """What the processor has, as Linux names it; nothing on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()[2:]) for line in lines if line.startswith("flags")), set())
