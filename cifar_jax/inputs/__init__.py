"""What happens to an image before the model sees it. Nothing here knows about files.

`make` binds the transforms that a config lists; `registry.py` names them all.
"""

from cifar_jax.inputs.checks import check, validate
from cifar_jax.inputs.curriculum import Curriculum, curriculum
from cifar_jax.inputs.mix import Targets
from cifar_jax.inputs.pipeline import Inputs, image_shape, make, mixes
from cifar_jax.inputs.views import VIEWS, weights

__all__ = [
    "VIEWS",
    "Curriculum",
    "Inputs",
    "Targets",
    "check",
    "curriculum",
    "image_shape",
    "make",
    "mixes",
    "validate",
    "weights",
]
