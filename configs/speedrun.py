"""Nearly nine epochs of airbench94's network on images that grow: the recipe "E1" (Fulcrum
Research, github.com/fulcrumresearch/cifar-10-speedrun, 2026), the fastest to 94% on one GPU that is
published.

    python main.py --mode=train_and_eval --config=configs/speedrun.py --workdir=runs/speedrun

Its curriculum, 24, 28 and 32 pixels, is what it gains most by, and is here with its epochs, batch,
rates, decays and momenta, and with the averaged steps at its end. What differs from it: GELU, where
it has SiLU within the groups; no jitter of brightness and contrast; airbench94's statistics,
whitening images, Newton-Schulz coefficients and kernel norms, which are set at every step; and the
whitening bias, which it freezes after 7 steps, goes on at a twentieth of its rate.
"""

import ml_collections

from cifar_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    config = recipe("airbench94")
    config.dtype = "bfloat16"
    config.batch_size = 1_536
    epoch = 32 * 1_536 / 50_000  # of its whole batches
    config.num_epochs = 8.875 * epoch  # 284 steps
    config.inputs.curriculum = ((3 * epoch, 24), (6 * epoch, 28))

    # It adds up the losses of a batch, too (see airbench94.py). Rates fall to a twentieth over 272
    # steps, and stay there for the last 12.
    decaying = {"epochs": 8.5001 * epoch}

    def sgd(rate: float) -> dict[str, float]:
        return {"learning_rate": rate * config.batch_size, "weight_decay": 1.0418e-6 / rate}

    optim = config.optim
    optim.groups = (
        {"params": "whiten/kernel", "name": "frozen"},
        {"params": "whiten/bias", "epochs": 0.22 * epoch, **sgd(0.0573)},
        {"params": "*/bias", **decaying, **sgd(0.0573)},
        {"params": "linear/kernel", **decaying, **sgd(0.5415)},
        {
            **{"params": "*", "name": "muon", "momentum": 0.655, "muon_steps": 3},
            **{"fixed_norm": True, "learning_rate": 0.2255, **decaying},
        },
    )
    optim.learning_rate = 0.2255  # Muon's
    optim.momentum = 0.825
    optim.final_factor = 0.05
    optim.label_smoothing = 0.09
    optim.ema_decay = 0.7
    optim.lookahead.every = 4
    optim.lookahead.start = 264 / 284
    return config
