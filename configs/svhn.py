"""The tutorial's exercise: house numbers (SVHN, cropped digits).

    python main.py --mode=train_and_eval --config=configs/svhn.py --workdir=runs/svhn
    python main.py --config=configs/svhn.py:tutorial …     # the tutorial's network
    python main.py --config=configs/svhn.py:125 …          # another batch, with rates that follow

No flip: a mirrored digit is another digit, or none. The network is airbench's, with its recipe and
twice its epochs: batch normalisation copes with digits on grounds of any brightness, and its last
layers see a digit in 7x7 places. Crops stay within 2 pixels, as there are other digits beside it.
`--config.data.svhn.extra=True` trains with the 531,131 easier images as well.

docs/exercises.md says what could be measured.
"""

import ml_collections

from cifar_jax.config import recipe


def get_config(variant: str = "500") -> ml_collections.ConfigDict:
    if variant == "tutorial":
        config = recipe("default")
        config.inputs.transforms = ("random_crop", "brightness", "contrast", "standardize")
    else:
        config = recipe(f"airbench94:batch={variant}")
        config.num_epochs = 16.0
        config.inputs.transforms = ("random_crop", "standardize")
        config.eval.views = 1  # the other views are mirrored
    config.data.name = "svhn"
    return config
