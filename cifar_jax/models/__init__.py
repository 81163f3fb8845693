"""The registry of networks: each name belongs to one file of this folder."""

from flax import linen as nn

from cifar_jax.models import cnn

_MODELS: dict[str, type[nn.Module]] = {"cnn": cnn.CNN}
NAMES = tuple(_MODELS)


def create(name: str, num_classes: int, dtype: str) -> nn.Module:
    """The network `name` for `num_classes`, computing in `dtype` on float32 parameters."""
    return _MODELS[name](num_classes=num_classes, dtype=dtype)
