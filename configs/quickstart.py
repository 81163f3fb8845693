"""Ten drawn shapes, no download: from nothing to a trained network in about a minute.

    python main.py --mode=train_and_eval --config=configs/quickstart.py --workdir=runs/quickstart

2 CPU cores: 468 steps in about 50 seconds, precision @ 1 = 0.989 (one seed). A linear classifier of
the pixels stays at 0.37.
"""

import ml_collections

from cifar_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    config = recipe("default")
    config.data.name = "synthetic"
    config.num_epochs = 5.0
    config.optim.learning_rate = 0.02
    config.optim.momentum = 0.9
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.5
    config.optim.ema_decay = 0.99
    return config
