"""The tutorial's recipe, and every default of the project.

    python main.py --config=configs/default.py --workdir=runs/tutorial

100,000 steps, about 86% precision @ 1 by the tutorial's own account; docs/results.md has what
was measured here. Other recipes start from this one and change a few lines. Any field can be set
from the command line as `--config.optim.learning_rate=0.05`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    # So many networks in one program, with the seeds from `seed` on. Each is the run that it would
    # be alone, in members/<number> of the workdir.
    config.num_seeds = 1
    # Networks that differ in these fields, in one program as well, each with all the seeds:
    # 'optim.learning_rate=0.1,0.05; optim.label_smoothing=0,0.1' are four. '&' in place of ';' goes
    # through the values of both together.
    config.sweep = ""
    config.batch_size = 128  # global: split evenly over the devices
    config.per_device_batch_size = 0  # where set, batch_size is this times the devices
    # Microbatches of a step, one after the other, where memory is short. Batch normalisation takes
    # its statistics over all replicas, but of each microbatch alone; the running averages move once
    # a step, towards the mean over the microbatches.
    config.accumulate = 1
    config.num_epochs = 256.0  # 100,000 steps of 128 on 50,000 images
    config.num_steps = 0  # where set, it decides and num_epochs is not looked at
    # A workdir whose newest checkpoint a new run starts from: the EMA of what has the same path and
    # shape here. What has not, as a head for other classes, starts as without it.
    config.init_from = ""
    config.num_devices = 0  # 0: all there are; more than there are: those there are
    config.cluster = ""  # 'auto': one of several processes, as Slurm, Kubernetes or Open MPI say
    config.join_seconds = 120.0  # for which the processes wait for each other at the start
    config.heartbeat_seconds = 30.0  # without a sign of life after which one is taken for lost
    config.shard_optimizer = False  # True: its state and the EMA are sharded over the devices
    config.dtype = "float32"  # of the computation, or 'bfloat16'. Parameters stay float32
    config.steps_per_call = 0  # in one program; 0: 1 on CPUs, up to 100 between summaries elsewhere
    config.log_every_steps = 10

    config.model = ml_collections.ConfigDict()
    config.model.name = "cnn"  # the tutorial's; 'cnn_local', 'resnet18', 'airbench' or 'airbench96'

    # A smaller network, as 'airbench_small', that looks at each batch first: the model is trained
    # on the images for which that one has the greatest loss. '': none, and the model sees all.
    config.proxy = ml_collections.ConfigDict()
    config.proxy.model = ""
    config.proxy.keep = 0.5  # share of a batch that is left for the model
    config.proxy.every = 4  # steps from one in which it is trained itself, on these, to the next

    config.data = data = ml_collections.ConfigDict()
    data.name = (
        "cifar10"  # 'cifar10', 'cifar100', 'svhn', 'synthetic', 'tfds', 'npz', 'folder', 'csv'
    )
    data.dir = ""  # '': $CIFAR_JAX_DATA, else ~/.cache/cifar_jax (tfds has its own)
    # Training images held out as the split 'validation', drawn by the seed: a share below 1, or
    # their number.
    data.validation = 0.0
    data.balance = False  # True: an image's loss times (images / classes) / (images of its class)
    data.svhn = ml_collections.ConfigDict()
    data.svhn.extra = False  # True: with the 531,131 easier training images
    data.synthetic = ml_collections.ConfigDict()
    data.synthetic.train = 12_000  # images that are drawn
    data.synthetic.test = 2_000
    data.synthetic.seed = 0
    data.tfds = ml_collections.ConfigDict()
    data.tfds.name = "cifar10"  # with config and version where they matter: 'cifar10:3.0.2'
    data.tfds.train_split = "train"  # in tensorflow-datasets' notation: 'train[:90%]'
    data.tfds.test_split = "test"
    data.pictures = ml_collections.ConfigDict()  # of folder and csv
    data.pictures.size = (32, 32)  # height and width that every picture is resized to
    data.pictures.channels = 3  # 1: grey, 3: RGB, 4: RGB with transparency
    data.folder = ml_collections.ConfigDict()
    data.folder.test = 0.1  # share of each class for the test, where no folders say which
    data.csv = ml_collections.ConfigDict()
    data.csv.path = "path"  # column of the files, relative to the CSV's folder
    data.csv.label = "label"  # column of the class: its name, or a whole number

    data.placement = (
        "auto"  # 'device', 'host', 'stream'; 'auto': 'device' where it fits, else another
    )
    data.shards = ""  # a folder that `python -m cifar_jax.data.prepare` wrote: trains from there
    data.num_threads = 16  # that read, for 'host' and 'stream'
    data.prefetch = 16  # batches held ready for them; two calls in any case

    config.inputs = inputs = ml_collections.ConfigDict()
    inputs.size = (24, 24)  # height and width that the model sees; (24,) is a square, too
    inputs.curriculum = ()  # ((3, 24), (6, 28)): resized to 24 pixels before epoch 3, then to 28
    # In this order; cifar_jax/inputs/registry.py has them all. Two in brackets, as in
    # ("random_crop", ("brightness", "contrast"), …), are applied in an order drawn for each image.
    inputs.transforms = ("random_crop", "flip", "brightness", "contrast", "standardize")
    inputs.random_crop = ml_collections.ConfigDict()  # evaluation: the central crop
    inputs.random_crop.padding = 0  # pixels added on each side of the image first
    inputs.random_crop.fill = "zero"  # or 'reflect': what they hold
    inputs.random_crop.max_shift = 0  # pixels that it may be off the centre; 0: no limit
    inputs.random_resized_crop = resized = ml_collections.ConfigDict()  # for larger images
    resized.area_lower = 0.08  # fraction of the image's area: uniform
    resized.area_upper = 1.0
    resized.ratio_lower = 0.75  # width / height: its logarithm uniform
    resized.ratio_upper = 4 / 3
    resized.central = 0.875  # evaluation: the central crop's fraction of the limiting side
    inputs.flip = ml_collections.ConfigDict()
    inputs.flip.alternating = False  # True: a coin for each image, and all flipped in odd epochs
    inputs.brightness = ml_collections.ConfigDict()
    inputs.brightness.delta = 63.0  # added: uniform in [-delta, delta), on the 0..255 scale
    inputs.contrast = ml_collections.ConfigDict()
    inputs.contrast.lower = 0.2  # times the distance from the channel's mean: uniform
    inputs.contrast.upper = 1.8
    inputs.color = ml_collections.ConfigDict()
    inputs.color.delta = 0.1  # channels times 1 + noise, uniform in [-delta, delta) by pair
    inputs.cutout = ml_collections.ConfigDict()
    inputs.cutout.size = 8  # pixels of a side of the square set to 0
    inputs.standardize = ml_collections.ConfigDict()  # evaluation does it, too
    inputs.standardize.by = "image"  # its own mean and deviation; 'dataset': the training images'
    inputs.mixup = ml_collections.ConfigDict()
    inputs.mixup.alpha = 0.2  # of the Beta distribution of the weights
    inputs.mixup.probability = 1.0  # of a pair of images to be mixed
    inputs.cutmix = ml_collections.ConfigDict()
    inputs.cutmix.alpha = 1.0
    inputs.cutmix.probability = 0.5

    config.optim = optim = ml_collections.ConfigDict()
    optim.name = "sgd"  # 'sgd', 'adam', 'adamw', 'muon' or 'frozen'
    optim.momentum = 0.0  # sgd, muon
    optim.nesterov = False
    optim.betas = (0.9, 0.999)  # adam, adamw
    optim.learning_rate = 0.1
    optim.schedule = "exponential"  # 'exponential', 'constant', 'cosine' or 'linear'
    optim.decay_epochs = 350.0  # exponential: a step of the staircase
    optim.decay_factor = 0.1  # exponential: what each step multiplies the rate by
    optim.final_factor = 0.0  # cosine, linear: the last rate / learning_rate
    optim.warmup_epochs = 0.0  # linear, before any of the schedules
    optim.warmup_factor = 0.0  # the first rate / learning_rate
    optim.label_smoothing = 0.0  # of the labels' weight, spread over all classes
    optim.weight_decay = 0.004  # L2 on the parameters of decay_params, which mean nothing with 0.0
    optim.decay_params = ("local3/kernel", "local4/kernel")  # paths; * is any text: '*/kernel'
    optim.decoupled_decay = False  # True: beside the gradient, not in it, and times the rate alone
    # Parameters to be updated otherwise, as {'params': '*/bias', 'name': 'frozen'}; of the groups
    # that match a parameter the first has it. A group may set name, learning_rate, momentum,
    # nesterov, betas, weight_decay, decoupled_decay, epochs (at whose end its own schedule ends:
    # linear or cosine), and for muon muon_steps (5) and fixed_norm (False).
    optim.groups = ()
    optim.ema_decay = 0.9999  # of the EMA of parameters and model state, once its warm-up is over
    # Lookahead: every so many steps the EMA moves, and parameters and model state return to it. Its
    # decay has no warm-up, but is ema_decay · (step / steps of the run)^power.
    optim.lookahead = ml_collections.ConfigDict()
    optim.lookahead.every = 0  # 0: an EMA that moves at each step, and to which nothing returns
    optim.lookahead.power = 0.0
    optim.lookahead.start = 0.0  # share of the run before it, in which the EMA is what it is of

    config.summaries = summaries = ml_collections.ConfigDict()
    summaries.scalars = 10  # steps from one to the next, as of the others; 0: none
    summaries.images = 100
    summaries.histograms = 100

    config.profile = ml_collections.ConfigDict()
    config.profile.steps = (0, 0)  # from which step to before which a trace is taken; (100, 110)

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_steps = 1_000  # 0: not by steps
    checkpoint.every_minutes = 10.0  # 0: not by time
    checkpoint.keep = 5  # the newest ones, and the last that later steps have proven good
    # 'validation': each checkpoint is evaluated on that split, and the best one is kept, too.
    checkpoint.keep_best = ""
    checkpoint.keep_every_steps = 0  # besides them, every multiple of this for good; 0: none

    config.stop = ml_collections.ConfigDict()
    config.stop.patience = 0  # checkpoints without a better one after which the run ends; 0: never

    config.divergence = ml_collections.ConfigDict()
    config.divergence.action = "stop"  # or 'continue'; a good checkpoint is kept in any case
    config.divergence.factor = 10.0  # times a new network's loss: diverged, if on average above

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 512  # has no influence on the result
    config.eval.views = 1  # 2, 6, 10 print a second line: mirrored; shifted by 1; the four corners
    config.eval.poll_seconds = 1.0  # how often to look for a new checkpoint

    return config.lock()
