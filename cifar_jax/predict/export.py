"""A trained network in one file that runs without this package: `main.py --mode=export`.

Pictures are uint8 [N, H, W, C] of the training images' shape, with N as large as one likes, and
come out as probabilities float32 [N, classes]: resizing is the caller's, all else is within.
"""

import contextlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cifar_jax import __version__, files, models
from cifar_jax.errors import UsageError, UserError, reason
from cifar_jax.ops import portable
from cifar_jax.predict import onnx_weights
from cifar_jax.predict.predictor import Trained, restore

PLATFORMS = "cpu", "cuda", "tpu"
WEIGHTS = "float32", "float16", "int8"  # of ONNX
PROGRAM, METADATA = "program", "metadata.json"  # members of a .stablehlo, which is a ZIP archive


def run(
    workdir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: int | str | None = None,
    ema: bool = True,
    weights: str = "float32",
) -> Path:
    """Writes the network of a run, as `restore` finds it, to the file `out`, in the format that its
    suffix says: one of `FORMATS`. Whole or not at all; returns the path.

    `weights` is how an ONNX file stores them: one of `WEIGHTS`.
    Raises UsageError for another suffix, and UserError where it cannot be written, a package is
    missing, and as `restore` does.
    """
    path = files.resolve(out, "--out")
    if path.suffix not in FORMATS:
        raise UsageError(f"--out={out}, expected a name that ends in {', '.join(FORMATS)}.")
    if weights != "float32" and path.suffix != ".onnx":
        raise UsageError(f"--weights={weights} is for ONNX, expected --out to end in .onnx.")
    if not path.parent.is_dir():
        raise UserError(f"Cannot write {path}: there is no folder {path.parent}.")
    trained = restore(workdir, step=step, ema=ema)
    content = FORMATS[path.suffix](trained, metadata(trained, ema, weights))
    try:
        files.write(path, content)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {reason(error)}.") from error
    print(
        f"{path}: {len(content) / 1e6:.1f} MB, '{trained.config.model.name}' of step {trained.step}"
    )
    return path


def metadata(trained: Trained, ema: bool = True, weights: str = "float32") -> dict[str, Any]:
    """What whoever runs the file needs to know."""
    return {
        "class_names": list(trained.dataset.class_names),
        "image_shape": list(trained.dataset.image_shape),
        "dataset": trained.dataset.name,
        "model": trained.config.model.name,
        "step": trained.step,
        "parameters": "ema" if ema else "raw",
        "weights": weights,
        "versions": {"cifar_jax": __version__, "jax": jax.__version__},
    }


def network(trained: Trained) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """uint8 [N, H, W, C], and where it is given float32 [N, h, w, 1], 0 where what the network sees
    is to be covered, else 1 -> (probabilities float32 [N, classes], what it sees without covers,
    float32 [N, h, w, C]). Of plain operations; N may be symbolic."""

    def predict(
        images: jax.Array, uncovered: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        with portable.operations():
            seen = trained.inputs.evaluate(images)[0]
            shown = seen if uncovered is None else seen * uncovered
            logits, *_ = models.forward(trained.model, trained.variables, shown, train=False)
        return jax.nn.softmax(logits), seen

    return predict


def _probabilities(trained: Trained) -> Callable[[jax.Array], jax.Array]:
    predict = network(trained)
    return lambda images: predict(images)[0]


def _argument(trained: Trained) -> jax.ShapeDtypeStruct:
    sizes = ", ".join(map(str, trained.dataset.image_shape))
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {sizes}"), jnp.uint8)


def _stablehlo(trained: Trained, facts: Mapping[str, Any]) -> bytes:
    """A ZIP archive of what `jax.export` has serialised, and of the metadata."""
    program = jax.export.export(jax.jit(_probabilities(trained)), platforms=PLATFORMS)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(METADATA, json.dumps(facts, indent=2))
        archive.writestr(PROGRAM, bytes(program(_argument(trained)).serialize()))
    return file.getvalue()


def _onnx(trained: Trained, facts: Mapping[str, Any]) -> bytes:
    return to_onnx(_probabilities(trained), [_argument(trained)], facts)


def to_onnx(
    function: Callable[..., Any],
    arguments: Sequence[jax.ShapeDtypeStruct],
    facts: Mapping[str, Any],
) -> bytes:
    """ONNX of a function of plain operations, by jax2onnx; the `facts` are its properties, as JSON
    each. Raises UserError where jax2onnx is not installed."""
    with _quiet():
        try:
            import jax2onnx
        except ImportError as error:
            raise UserError(
                "ONNX needs jax2onnx, which is not installed: "
                "pip install --no-deps -r requirements-onnx.txt."
            ) from error
        model = jax2onnx.to_onnx(function, list(arguments), model_name=facts["model"])
    if facts["weights"] != "float32":
        onnx_weights.store(model, facts["weights"])
    for name, value in facts.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet():
    """Without the converter's remarks about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _safetensors(trained: Trained, facts: Mapping[str, Any]) -> bytes:
    """The arrays alone, by path as "params/conv1/kernel", with the metadata and the config."""
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise UserError("safetensors is not installed: pip install safetensors.") from error
    arrays = traverse_util.flatten_dict(trained.variables, sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = {**facts, "config": trained.config.to_dict()}
    return save(arrays, {name: json.dumps(value) for name, value in described.items()})


FORMATS: dict[str, Callable[[Trained, Mapping[str, Any]], bytes]] = {
    ".stablehlo": _stablehlo,
    ".onnx": _onnx,
    ".safetensors": _safetensors,
}
