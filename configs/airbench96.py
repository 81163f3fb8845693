"""96% in 45 epochs: airbench96_faster (Keller Jordan, github.com/KellerJordan/cifar10-airbench).

    python main.py --mode=train_and_eval --config=configs/airbench96.py --workdir=runs/airbench96

Every number is that of airbench96_faster, and so are both networks: a small one looks at 1,024
images, and the large one is trained on the 512 that it finds hardest. What differs: the small
network trains beside the large one, not before it; it normalises by those 512 images where it is
trained, and its whitening bias is trained, too; both compute in bfloat16, not float16; batches
follow another order; and the six views' probabilities are averaged, not their logits. Its 96.0% are
by its author's account, for a GPU: here are some 4e15 operations.
"""

import ml_collections

from cifar_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    config = recipe("airbench94")
    config.model.name = "airbench96"
    config.dtype = "bfloat16"
    config.batch_size = 1_024
    config.num_epochs = 45 * 48 * 1_024 / 50_000  # 45 times the 48 whole batches of an epoch
    config.proxy.model = "airbench_small"
    config.proxy.keep = 0.5
    config.proxy.every = 4

    inputs = config.inputs
    inputs.transforms = ("random_crop", "flip", "standardize", "cutout")
    inputs.random_crop.padding = 4
    inputs.cutout.size = 12

    # airbench adds up the losses of the 512 images; here is their mean. Where it has a rate r, here
    # it is r · 512, and the decay is a 512-th of its.
    chosen, kilostep = 512, 1_024 * (1 + 1 / (1 - 0.85))
    rate, decay = 9.0 / kilostep, 0.012 * 1_024 / kilostep  # the decay is that of a step
    optim = config.optim
    optim.name = "sgd"
    optim.momentum = 0.85
    optim.learning_rate = rate * chosen
    optim.weight_decay = decay / (rate * chosen)
    optim.decay_params = ("*",)
    bias = {"learning_rate": 64 * rate * chosen, "weight_decay": decay / (64 * rate * chosen)}
    optim.groups = (
        {"params": "whiten/kernel", "name": "frozen"},
        {"params": "*/norm*/bias", **bias},
    )
    optim.warmup_epochs = 0.1 * config.num_epochs
    optim.warmup_factor = 0.2
    optim.ema_decay = 0.95**5
    optim.lookahead.every = 5
    optim.lookahead.power = 3.0
    return config
