"""The tutorial's exercise: a locally connected top, as cuda-convnet's "11%" network has it.

    python main.py --config=configs/local.py --workdir=runs/local

The tutorial's recipe with another network; docs/exercises.md compares the two.
"""

import ml_collections

from cifar_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    config = recipe("default")
    config.model.name = "cnn_local"
    return config
