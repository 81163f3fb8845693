# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inside the network
#
# The TensorFlow tutorial showed its readers what happens within a small convolutional network: what
# the distortions do to an image, what its layers compute, how the loss falls. This notebook follows
# the same road, with one picture for each station. It trains for about a minute on two CPU cores.

# %%
# Where the package is missing, as on Colab, this installs it.
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("cifar_jax"):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cifar-jax[report]"], check=True)

# %%
import tempfile
from pathlib import Path

from cifar_jax.devices import runtime

runtime.start()

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.config import recipe
from cifar_jax.telemetry.pictures import Shown

config = recipe("quickstart")
config.num_epochs = 3.0  # of 12,000 drawn images
config.checkpoint.every_steps = 40
workdir = Path(tempfile.mkdtemp()) / "inside"

# %% [markdown]
# ## An image and its distortions
#
# On the left an image of the training split, 32x32 pixels. Then seven times what the network is shown
# of it: a crop of 24x24 pixels at random, mirrored or not, with other brightness and contrast,
# standardised to mean 0 and deviation 1. The same image never comes twice in quite the same way.

# %%
from cifar_jax import inputs
from cifar_jax.data import splits
from cifar_jax.telemetry import pictures

train_split = splits.load(config.data, "train", config.seed)
pipeline = inputs.make(config.inputs, train_split.images.shape[1:], seed=config.seed)
batch = {
    "image": jnp.asarray(train_split.images[:1].repeat(7, 0)),
    "label": jnp.asarray(train_split.labels[:1].repeat(7)).astype(jnp.int32),
    "index": jnp.zeros(7, jnp.int32),
    "epoch": jnp.arange(7),
}
seen, _ = pipeline.train(jax.random.split(jax.random.key(0), 7), batch)
original = train_split.images[0, 4:28, 4:28]  # its central 24x24 pixels
shown = np.concatenate([original[None], pictures.visible(np.asarray(seen))])
captions = ["the image", *(f"distorted {n}" for n in range(1, 8))]
Shown(pictures.grid(shown, captions), "An image, and seven distorted versions of its crops")

# %% [markdown]
# ## The layers
#
# Two convolutions do nearly all of the arithmetic; the first dense layer, `local3`, holds nearly all
# of the parameters.

# %%
from IPython.display import Markdown

from cifar_jax import steps
from cifar_jax.models import overview

model = steps.make_model(config, num_classes=10)
Markdown(overview.markdown(overview.layers(model, pipeline.image_shape)))

# %% [markdown]
# ## Training
#
# The loss is the cross-entropy of the softmax plus an L2 penalty on the dense layers. After each
# checkpoint the network is evaluated twice: by the exponential moving average (EMA) of its
# parameters, and by the raw ones.

# %%
from cifar_jax.evaluate import Evaluator
from cifar_jax.train import train

with Evaluator(config, workdir) as average, Evaluator(config, workdir, ema=False) as raw:

    def evaluate_both(*checkpoint):
        average.evaluate(*checkpoint)
        raw.evaluate(*checkpoint)

    state, checkpoint = train(config, workdir, evaluate_both)

# %% [markdown]
# ## The losses
#
# Is the loss really falling, or is that noise? Each batch has a loss of its own, drawn faintly; the
# moving average over it tells. The L2 penalty is about half of the first loss: a total that falls may
# be mere decay, so that the cross-entropy is drawn apart.

# %%
from cifar_jax.report import charts, plots
from cifar_jax.report.history import History
from cifar_jax.workdir import records

history = History.of(records.read(workdir / records.FILE))
panels = charts.panels_of({"inside": history})


def chart(kind, alt):
    drawable = [panel for panel in panels[kind] if panel.drawable()]
    columns = 2 if len(drawable) > 3 else 1
    png = plots.png(lambda: plots.curves(drawable, columns=columns), plots.LIGHT)
    return Shown(png, alt, width=700)


chart("loss", "Total loss, cross-entropy and L2 penalty over the steps, all falling")

# %% [markdown]
# ## What the averages do
#
# The raw parameters jump about with every batch; their average does not, and is the better network
# here. One that remembers longer lags behind at first: `docs/exercises.md` has both after 5, 10 and 30
# epochs of CIFAR-10.

# %%
chart(
    "accuracy", "Accuracy over the steps: of training batches, of the EMA and of the raw parameters"
)

# %% [markdown]
# ## The filters
#
# The 64 filters of the first convolution, 5x5 pixels and three colours each. They began as noise, and
# after a minute most still look like it: a few have taken to a colour or to an edge.

# %%
parameters = jax.device_get(state.ema["params"])
kernel = pictures.colour_kernel(parameters)
Shown(
    pictures.filters(kernel, columns=16),
    "The 64 filters of the first convolution, as small pictures",
)

# %% [markdown]
# ## Activations, and how many are zero
#
# The network on eight test images. After each ReLU many values are exactly 0, which the tutorial
# called sparsity. A layer whose values are nearly all zero is dead; one with hardly any is close to
# linear.

# %%
from cifar_jax import models

test_split = splits.load(config.data, "test", config.seed)
(central,) = pipeline.evaluate(jnp.asarray(test_split.images[:8]))
logits, _, layers = models.forward(model, state.ema, central, train=False, layers=True)
for name, values in layers.items():
    print(f"{name:16} {str(values.shape[1:]):14} share of zeros {float((values == 0).mean()):.2f}")

# %% [markdown]
# Here is what the first layer makes of one image: the eight of its 64 channels that vary most, bright
# where the filter found what it looks for.

# %%
first = np.asarray(layers["conv1"][0])  # [24, 24, 64]
most = np.argsort(-first.std((0, 1)))[:7]
channels = [first[..., c] / max(first[..., c].max(), 1e-6) for c in most]
grey = [np.uint8(255 * channel)[..., None].repeat(3, -1) for channel in channels]
shown = np.stack([pictures.visible(np.asarray(central[:1]))[0], *grey])
captions = ["the image", *(f"channel {c}" for c in most)]
Shown(pictures.grid(shown, captions), "An image and seven channels of the first convolution on it")

# %% [markdown]
# ## Local response normalisation
#
# `norm1` divides each value by a power of the sum of squares over nine neighbouring channels: a
# channel whose neighbours are large, too, is turned down. By how much, at every place of one image?
# With the tutorial's constants and activations of this size it is less than one would think; the
# network of 2012 that the idea comes from had larger ones.

# %%
from cifar_jax.ops.lrn import lrn

before = np.asarray(layers["pool1"][0])  # [12, 12, 64]
after = np.asarray(lrn(layers["pool1"][:1])[0])
taken = 1000 * (1 - after[before > 0] / before[before > 0])  # thousandths of each value
print(f"norm1 takes {taken.min():.1f} to {taken.max():.1f} thousandths of a value")
counts, edges = np.histogram(taken, 30)
line = plots.Line("", (edges[1:] + edges[:-1]) / 2, counts.astype(float))
panel = plots.Panel("What norm1 takes of the values of an image", "thousandths", "values", [line])
png = plots.png(lambda: plots.curves([panel]), plots.LIGHT)
Shown(png, "How many values lose how many thousandths: most lose less than one", width=700)

# %% [markdown]
# ## Where to go next
#
# - The core of all this is two pages: `cifar_jax/steps/update.py` and `cifar_jax/models/cnn.py`.
# - [Several devices and the same numbers](many.ipynb).
# - [Your own pictures](your_data.ipynb).
# - The exercises that the tutorial left to its readers, answered by measurement: `docs/exercises.md`.
