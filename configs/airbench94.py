"""94% in eight epochs: airbench94_muon (Keller Jordan, github.com/KellerJordan/cifar10-airbench).

    python main.py --mode=train_and_eval --config=configs/airbench94.py --workdir=runs/airbench94

Every number is that of airbench94_muon, and so is the network. What differs: it computes in
float16 (`--config.dtype=bfloat16` comes close), shuffles in another order, and averages the six
views' logits, not their probabilities. Its 94.0% are by its author's account.

`--config=configs/airbench94.py:5` is for two CPU cores with instructions for bfloat16 and five
minutes: as many epochs as they take, of images that grow from 24 to 32 pixels. After a comma, or
alone, `batch=125` is another batch, with rates that follow it.
"""

import re

import ml_collections

from cifar_jax.config import recipe
from cifar_jax.errors import UsageError

_EPOCHS_PER_MINUTE = 1.5  # of growing images, on such cores
_START = 0.4  # minutes, with the evaluation


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """`argument`: MINUTES, batch=B, or MINUTES,batch=B."""
    found = re.fullmatch(r"(\d*\.?\d+)?,?(?:batch=([1-9]\d*))?", argument)
    if not found:
        raise UsageError(
            f"configs/airbench94.py:{argument}, expected minutes, batch=B, or both as 5,batch=500."
        )
    minutes, batch_size = found.groups()
    config = recipe("default")
    config.model.name = "airbench"
    config.batch_size = int(batch_size or 2_000)
    config.num_epochs = 8.0
    config.eval.views = 6

    inputs = config.inputs
    inputs.size = (32, 32)
    inputs.transforms = ("random_crop", "flip", "standardize")
    inputs.random_crop.padding = 2
    inputs.random_crop.fill = "reflect"
    inputs.flip.alternating = True
    inputs.standardize.by = "dataset"
    if minutes:
        config.dtype = "bfloat16"
        epochs = max(0.5, _EPOCHS_PER_MINUTE * (float(minutes) - _START))
        config.num_epochs = epochs
        inputs.curriculum = ((3 / 8 * epochs, 24), (6 / 8 * epochs, 28))

    # airbench adds up the losses of a batch of B images; here is their mean. Where it has a rate r
    # and adds 2e-6 · B / r · parameter to the gradient, here the rate is r · B, and the decay is a
    # B-th of its. Muon takes no more of a gradient than its direction.
    def sgd(rate: float) -> dict[str, float]:
        return {"learning_rate": rate * config.batch_size, "weight_decay": 2e-6 / rate}

    optim = config.optim
    optim.groups = (
        {"params": "whiten/kernel", "name": "frozen"},
        {"params": "whiten/bias", "epochs": 3, **sgd(0.053)},
        {"params": "*/bias", **sgd(0.053)},
        {"params": "linear/kernel", **sgd(0.67)},
        {"params": "*", "name": "muon", "momentum": 0.6, "muon_steps": 3, "fixed_norm": True},
    )
    optim.learning_rate = 0.24  # Muon's
    optim.momentum = 0.85
    optim.nesterov = True
    optim.schedule = "linear"
    optim.weight_decay = 0.0  # but for what the groups say
    optim.label_smoothing = 0.2
    optim.ema_decay = 0.0  # the parameters as they are: a rate that falls to 0 is average enough
    return config
