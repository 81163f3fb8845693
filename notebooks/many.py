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
# # Many devices, the same numbers
#
# The tutorial trained on several GPUs with a tower for each, built by hand. Here every device runs the
# same compiled step on its share of the batch, the gradients are averaged, and each device makes the
# same update. This notebook takes one CPU for four devices, so that it runs anywhere, and shows that
# their number changes nothing but rounding. About two minutes on two cores.

# %%
# Where the package is missing, as on Colab, this installs it.
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("cifar_jax"):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cifar-jax[report]"], check=True)

# %% [markdown]
# The number of CPU devices has to be set before JAX is used. (With GPUs at hand, leave that line out.)

# %%
import tempfile
from pathlib import Path

from cifar_jax.devices import runtime

runtime.start()

import jax

jax.config.update("jax_num_cpu_devices", 4)
print(jax.devices())

# %% [markdown]
# ## The same run on one, two and four devices
#
# The global batch has 64 images in each case: one device has all of them, four have 16 each. The order
# of the images and each image's distortions follow from the seed, the step and the image's place in
# the global batch.

# %%
import contextlib
import io

import numpy as np

from cifar_jax.config import recipe
from cifar_jax.report.history import series
from cifar_jax.train import train
from cifar_jax.workdir import records

folder = Path(tempfile.mkdtemp())


def run(name, **fields):
    """The losses of 30 steps, and the parameters after them."""
    config = recipe("default")
    config.data.name = "synthetic"
    config.data.synthetic.update(train=2000, test=100)
    config.update(batch_size=64, num_steps=30)
    config.summaries.update(scalars=1, images=0, histograms=0)
    config.update(**fields)
    with contextlib.redirect_stdout(io.StringIO()):  # the lines of three runs say the same
        state, _ = train(config, folder / name)
    lines = [line for line in records.read(folder / name / records.FILE) if line["kind"] == "train"]
    return series(lines, "loss")[1], jax.device_get(state.params)


losses, parameters = {}, {}
for count in (1, 2, 4):
    losses[count], parameters[count] = run(f"on{count}", num_devices=count)
    print(f"{count} devices: the last loss is {losses[count][-1]:.6f}")

# %% [markdown]
# How far apart are they? A sum in another order is rounded differently, in the last digits of float32,
# and training makes such differences grow, as it does all others.

# %%
for count in (2, 4):
    apart = np.abs(losses[count] / losses[1] - 1).max()
    print(f"1 and {count} devices: losses at most {apart:.1e} of each other apart, over 30 steps")

# %%
from cifar_jax.report import plots
from cifar_jax.telemetry.pictures import Shown

step = np.arange(len(losses[1]), dtype=float)
lines = [plots.Line(f"{n} device(s)", step, losses[n], slot) for slot, n in enumerate(losses)]
curves = plots.Panel("Loss of the same run on 1, 2 and 4 devices", "step", "nats", lines)
apart = [
    plots.Line(f"1 and {n}", step, np.maximum(np.abs(losses[n] / losses[1] - 1), 1e-7), slot)
    for slot, n in ((1, 2), (2, 4))
]
differences = plots.Panel(
    "Their relative differences (at least 1e-7)", "step", "share", apart, log=True
)
png = plots.png(lambda: plots.curves([curves, differences]), plots.LIGHT)
Shown(
    png,
    "Three curves of the loss that lie on each other; below, differences of at most 1e-4",
    width=700,
)

# %% [markdown]
# ## Where the memory is short
#
# `shard_optimizer` spreads the optimiser's state and the averages over the devices instead of keeping
# a copy on each (ZeRO-1). `accumulate` computes a batch as several smaller ones, one after the other.
# Neither changes the numbers.

# %%
for name, fields in {
    "shard_optimizer": {"num_devices": 4, "shard_optimizer": True},
    "accumulate": {"num_devices": 1, "accumulate": 4},
}.items():
    found, _ = run(name, **fields)
    apart = np.abs(found / losses[1] - 1).max()
    print(f"{name}: losses at most {apart:.1e} from those of one device")

# %% [markdown]
# ## Is it faster?
#
# Not here: four devices that share two cores do the same work, and some more to add up the gradients.
# On GPUs, each does its share at the same time. How far that goes for a network as small as this one
# stands in `docs/scaling.md`: for 128 images a step, one GPU is enough.
#
# ## Where to go next
#
# - Several machines: `docs/many_devices.md`, with files for Slurm and Kubernetes in `launch/`.
# - [What happens inside the network](inside.ipynb).
# - [Your own pictures](your_data.ipynb).
