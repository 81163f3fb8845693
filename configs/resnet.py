"""ResNet-18 with a recipe of today: crops of the padded picture, cutout, cosine, label smoothing.

    python main.py --mode=train_and_eval --config=configs/resnet.py --workdir=runs/resnet

Rate, momentum, decay, batch and length are those of Zagoruyko and Komodakis (Wide Residual
Networks, 2016). It wants an accelerator: on 2 CPU cores 200 steps of 32 images take some minutes.
"""

import ml_collections

from cifar_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    config = recipe("default")
    config.model.name = "resnet18"
    config.batch_size = 128
    config.num_epochs = 200.0

    inputs = config.inputs
    inputs.size = (32, 32)
    # Cutout comes last: its square is then the mean of the training images, and not black.
    inputs.transforms = ("random_crop", "flip", "standardize", "cutout")
    inputs.random_crop.padding = 4  # zeros (He et al., Deep Residual Learning, section 4.2)
    inputs.cutout.size = 16  # DeVries and Taylor, Improved Regularization of CNNs with Cutout
    inputs.standardize.by = "dataset"

    optim = config.optim
    optim.learning_rate = 0.1
    optim.momentum = 0.9
    optim.nesterov = True
    optim.weight_decay = 5e-4
    optim.decay_params = ("*/kernel",)  # neither biases nor what normalisations learn
    optim.schedule = "cosine"  # Loshchilov and Hutter, SGDR
    optim.warmup_epochs = 5.0  # Goyal et al., Accurate, Large Minibatch SGD
    optim.label_smoothing = 0.1  # Szegedy et al., Rethinking the Inception Architecture
    optim.ema_decay = 0.999  # about the last three epochs
    return config
