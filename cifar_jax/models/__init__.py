"""The registry of networks: each name belongs to one file of this folder.

A network is a `flax.linen.Module` with the fields `num_classes` and `dtype` (of the computation);
its parameters are float32. Called with standardised float32 images [B, H, W, C] and `train`, it
returns float32 logits [B, num_classes]. Collections other than "params", such as the batch
statistics, are its state. It publishes the outputs of its layers (`activations.publish`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.errors import UsageError, reason
from cifar_jax.models import activations, airbench, cnn, cnn_local, resnet
from cifar_jax.ops import native

_airbench96 = partial(airbench.Airbench, momentum=0.9, divisor=9.0)
_MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn.CNN,
    "cnn_local": cnn_local.CNNLocal,
    "resnet18": resnet.ResNet18,
    "airbench": airbench.Airbench,
    "airbench96": partial(_airbench96, widths=(128, 384, 512), depth=3),
    "airbench_small": partial(_airbench96, widths=(32, 64, 64)),
}
NAMES = tuple(_MODELS)
_LARGE = 256  # pixels of a side: what fails there, too, is not for want of pixels


def create(name: str, num_classes: int, dtype: str) -> nn.Module:
    """The network `name` for `num_classes`, computing in `dtype_here(dtype)` on float32
    parameters."""
    return _MODELS[name](num_classes=num_classes, dtype=dtype_here(dtype))


def dtype_here(dtype: str) -> str:
    """`dtype`, but float32 for bfloat16 on CPUs where `ops.native` is not usable: XLA would convert
    to float32 and back around each operation, at half of the speed."""
    emulated = jax.default_backend() == "cpu" and dtype == "bfloat16" and not native.usable(dtype)
    return "float32" if emulated else dtype


def remarks(dtype: str) -> list[str]:
    """What to know about the arithmetic on this device."""
    if dtype_here(dtype) == dtype:
        return []
    return [f"{dtype} is computed in float32 here: {native.reason(dtype)}."]


def init(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Variables for images of `image_shape` (H, W, C): {"params": …, and the model's state}.

    Raises UsageError for images that are too small for the model.
    """
    height, width, channels = image_shape
    try:
        # Without computing the model, but operation by operation: under `jit` the last bits may
        # differ.
        return dict(model.lazy_init(key, _images(height, width, channels)))
    except (TypeError, ValueError) as error:  # as JAX has it for shapes that cannot be
        if not _takes(model, _images(max(height, _LARGE), max(width, _LARGE), channels)):
            raise  # it is not the size: a bug of the model
        raise UsageError(
            f"{type(model).__name__} cannot take images of {height}x{width}: {reason(error)}. "
            "Choose a larger config.inputs.size."
        ) from error


def check_sizes(
    model: nn.Module, variables: dict[str, Any], sizes: tuple[int, ...], channels: int
) -> None:
    """Raises UsageError where images of one of these sizes would need other `variables`."""
    expected = jax.tree.map(jnp.shape, variables)
    for size in sizes:
        found = init(model, jax.random.key(0), (size, size, channels))
        if jax.tree.map(jnp.shape, found) != expected:
            raise UsageError(
                f"config.inputs.curriculum: {type(model).__name__} has other parameters for images "
                f"of {size}x{size}. Choose a model that takes any size, as 'airbench'."
            )


def _images(height: int, width: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)


def _takes(model: nn.Module, images: jax.ShapeDtypeStruct) -> bool:
    try:
        jax.eval_shape(model.init, jax.random.key(0), images)
    except (TypeError, ValueError):
        return False
    return True


def images_to_fit(model: nn.Module) -> int:
    """How many training images `init_from_data` looks at, the first ones; 0 for a model that takes
    none."""
    return model.images_to_fit if hasattr(model, "init_from_data") else 0


def init_from_data(
    model: nn.Module, variables: dict[str, Any], images: jax.Array
) -> dict[str, Any]:
    """`variables` with those parameters that the model takes from its training images.

    `images`: float32 [N, H, W, C], the first `images_to_fit(model)` of the training split,
    standardised as for training. A model that takes some has `init_from_data(variables, images)`
    and the number `images_to_fit` of its own; one that does not gets `variables` back.
    """
    own = getattr(model, "init_from_data", None)
    return own(variables, images) if own else variables


def forward(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    *,
    train: bool,
    layers: bool = False,
) -> tuple[jax.Array, dict[str, Any], dict[str, jax.Array]]:
    """(float32 logits [B, num_classes], the model's state, activations) of standardised images.

    The state is every collection of `variables` but "params": after this batch where `train`, the
    same otherwise. The activations are those that the model publishes, by their path in the
    model's order; {} without `layers`.
    """
    state = {name: tree for name, tree in variables.items() if name != "params"}
    mutable = [*(state if train else ()), *((activations.COLLECTION,) if layers else ())]
    logits, changed = model.apply(dict(variables), images, train=train, mutable=mutable)
    state.update(changed)
    published = activations.by_path(state.pop(activations.COLLECTION, {}))
    return logits, state, published
