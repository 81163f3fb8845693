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
# # Your own pictures
#
# A folder of pictures, with a folder for each class, becomes a network, a look at its mistakes, and a
# file that runs elsewhere. The pictures here are drawn; put yours in their place.

# %%
# Where the package is missing, as on Colab, this installs it.
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("cifar_jax"):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cifar-jax[report]"], check=True)

# %%
import os
import tempfile
from pathlib import Path

from cifar_jax.devices import runtime

runtime.start()

import numpy as np
from PIL import Image

folder = Path(tempfile.mkdtemp())
os.environ["CIFAR_JAX_DATA"] = str(folder / "cache")  # where decoded pictures are kept

# %% [markdown]
# ## The folder
#
# Three classes of 200 pictures, drawn by the built-in dataset and written as PNG. With your own, name
# their folder instead: `DIR/train/<class>/…` and `DIR/test/<class>/…`, or `DIR/<class>/…`, of which a
# tenth is drawn for the test. Any format that Pillow reads, any size.

# %%
from cifar_jax.config import recipe
from cifar_jax.data import splits

drawn = splits.load(recipe("quickstart").data, "train", 0)
for label, name in enumerate(drawn.class_names[:3]):
    (folder / "mine" / name).mkdir(parents=True)
    for number in np.flatnonzero(drawn.labels == label)[:200]:
        Image.fromarray(drawn.images[number]).save(folder / "mine" / name / f"{number}.png")

config = recipe("quickstart")
config.data.name, config.data.dir = "folder", str(folder / "mine")
config.data.validation = 0.1  # of the training pictures, held out
config.checkpoint.keep_best = "validation"
config.checkpoint.every_steps = 30
config.batch_size, config.num_epochs = 32, 6.0

# %% [markdown]
# ## Train
#
# The first line says what was found. With `keep_best` each checkpoint is evaluated on the pictures
# that were held out, and the best one is kept beside the newest.

# %%
from cifar_jax.evaluate import Evaluator
from cifar_jax.train import train

workdir = folder / "run"
with Evaluator(config, workdir, split="validation") as evaluator:
    train(config, workdir, evaluator.evaluate)

# %% [markdown]
# ## The most confident mistakes
#
# Look at them before you change anything: often it is the label that is wrong.

# %%
import cifar_jax
from cifar_jax.telemetry import pictures
from cifar_jax.telemetry.pictures import Shown

predictor = cifar_jax.load(workdir, step="best")
test = splits.load(config.data, "test", config.seed)
probabilities = predictor(test.images)
predicted = probabilities.argmax(-1)
print(f"{(predicted == test.labels).mean():.3f} of {len(test)} test pictures are right")
wrong = np.flatnonzero(predicted != test.labels)
worst = wrong[np.argsort(-probabilities.max(-1)[wrong])][:4]
shown = worst if len(worst) else np.arange(4)  # where there is no mistake, some pictures
captions = [
    f"{test.class_names[test.labels[i]]}, taken for\n{test.class_names[predicted[i]]}"
    for i in shown
]
Shown(pictures.grid(test.images[shown], captions), "Pictures with their label and prediction")

# %% [markdown]
# ## Take it elsewhere
#
# One file with everything within, from the pictures' bytes to probabilities; `.onnx` runs in browsers
# and on phones.

# %%
from cifar_jax.predict import export

path = export.run(workdir, folder / "mine.stablehlo", step="best")

# %% [markdown]
# ## Where to go next
#
# - Before you train: `python -m cifar_jax.data.look DIR` writes a page with counts, sizes, examples and
#   test pictures that are training pictures, too.
# - Few pictures? Start from a network that has seen many: `config.init_from`, in `docs/your_data.md`.
# - Classes of very different sizes: `config.data.balance = True`.
# - Notebooks: [inside the network](inside.ipynb), [many devices](many.ipynb).
