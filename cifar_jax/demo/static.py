"""The page as a folder for any web host, in which the browser itself runs the network."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax import files
from cifar_jax.demo import page
from cifar_jax.errors import UserError, reason
from cifar_jax.predict import export
from cifar_jax.predict.predictor import Trained

PACKAGE = "onnxruntime-web@1.30.0"  # of npm, MIT licence
_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # of its archive
_RUNTIME = "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"


def write(
    trained: Trained,
    out: str | os.PathLike[str],
    runtime: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes the page of a network to the folder `out`, which it makes; returns its path.

    `runtime` is the folder of the npm package onnxruntime-web; without it npm downloads that.
    Raises UserError where that fails, a package is missing, or a file cannot be written.
    """
    folder = files.resolve(out, "--static")
    facts = export.metadata(trained) | {"seen_shape": trained.inputs.image_shape}
    contents = _downloaded() if runtime is None else _installed(runtime)
    contents["model.onnx"] = _network(trained, facts)
    contents["classifier.mjs"] = Path(__file__).with_name("classifier.mjs").read_bytes()
    contents["index.html"] = page.render(facts, static=True)  # last: what it needs is there
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            files.write(folder / name, content)
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {reason(error)}.") from error
    return folder


def _network(trained: Trained, facts: Mapping[str, Any]) -> bytes:
    """The ONNX of `export.network`, with both of its inputs and of its outputs."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *trained.dataset.image_shape), jnp.uint8)
    uncovered = jax.ShapeDtypeStruct((batch, *trained.inputs.image_shape[:2], 1), jnp.float32)
    return export.to_onnx(export.network(trained), [images, uncovered], facts)


def _installed(runtime: str | os.PathLike[str]) -> dict[str, bytes]:
    """The runtime's files, by name."""
    folder = files.resolve(runtime, "--onnxruntime") / "dist"
    try:
        return {name: (folder / name).read_bytes() for name in _RUNTIME}
    except OSError as error:
        raise UserError(
            f"--onnxruntime={runtime}: {reason(error)}, expected the folder of {PACKAGE}, which "
            "npm puts into node_modules/onnxruntime-web."
        ) from error


def _downloaded() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"The page needs {PACKAGE} of npm, which is not installed here. Install npm, or name "
            "that package's folder with --onnxruntime=DIR."
        )
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", "--silent", PACKAGE]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(
                f"npm cannot download {PACKAGE}: {said}. Name that package's folder with "
                "--onnxruntime=DIR."
            )
        content = archives[0].read_bytes()
        if hashlib.sha256(content).hexdigest() != _SHA256:
            raise UserError(f"What npm downloaded as {PACKAGE} has another SHA-256 than expected.")
        with tarfile.open(archives[0]) as archive:
            found = {name: archive.extractfile(f"package/dist/{name}") for name in _RUNTIME}
            return {name: file.read() for name, file in found.items() if file is not None}
