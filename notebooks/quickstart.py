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
# # Quickstart: from nothing to a trained network
#
# A convolutional network learns to tell ten drawn shapes apart: a minute of training on two CPU
# cores. Then it is evaluated, and classifies a picture that it has never seen.

# %%
# Where the package is missing, as on Colab, this installs it.
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("cifar_jax"):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cifar-jax[report]"], check=True)

# %% [markdown]
# `runtime.start()` keeps compiled steps between starts, and comes before JAX. A recipe is a config:
# any field can be changed before training.

# %%
import tempfile
from pathlib import Path

from cifar_jax.devices import runtime

runtime.start()

from cifar_jax.config import recipe
from cifar_jax.evaluate import evaluate
from cifar_jax.train import train

config = recipe("quickstart")
config.num_epochs = 3.0  # of 12,000 images
workdir = Path(tempfile.mkdtemp()) / "shapes"

# %% [markdown]
# ## Train
#
# What `train` prints is what the TensorFlow tutorial prints. It may be stopped at any time: the same
# call goes on from the last checkpoint. A run lives in its workdir.

# %%
state, checkpoint = train(config, workdir)
print("The last checkpoint is", checkpoint.name)

# %% [markdown]
# ## Evaluate
#
# The accuracy of the averaged parameters on 2,000 test images, by step:

# %%
evaluate(config, workdir, once=True)

# %% [markdown]
# Which shapes are confused? Rows are the labels, columns what the network says: a perfect network has
# all its counts on the diagonal.

# %%
import numpy as np
from PIL import Image

import cifar_jax
from cifar_jax.data import splits
from cifar_jax.telemetry import pictures
from cifar_jax.telemetry.pictures import Shown

predictor = cifar_jax.load(workdir)
test = splits.load(config.data, "test", config.seed)
predicted = predictor(test.images).argmax(-1)
matrix = np.zeros((10, 10), int)
np.add.at(matrix, (test.labels, predicted), 1)
Shown(pictures.confusion(matrix, test.class_names), "Counts of labels against predictions")

# %% [markdown]
# ## Classify a picture
#
# `predictor.classify` takes a file or its bytes, of any size, and names the classes with their
# probabilities, the most probable first.

# %%
path = workdir / "picture.png"
Image.fromarray(test.images[7]).save(path)
predictor.classify(path)[:3]

# %% [markdown]
# What did the network see, and where did it look? On the left what it was given: the central crop,
# standardised. On the right the same in grey, red where covering a square lowers the probability
# of the class. (That says where, not why.)

# %%
from cifar_jax.predict import heat_map

seen, heat = predictor.look(test.images[7])
drawn = heat_map.draw(seen, heat, predictor.classify(path)[:3])
Shown(drawn, "What the network saw, and the same in grey with red and blue where it looked")

# %% [markdown]
# ## Where to go next
#
# - Your own pictures, a folder for each class: `config.data.name = "folder"`, `config.data.dir = …`; the
#   layouts stand in `docs/your_data.md`.
# - The real CIFAR-10: `recipe("default")`, which is the tutorial's, or `recipe("fast")`.
# - A page about the run with all its curves: `python main.py --mode=report --workdir=…`.
# - The network in one file for a server, a phone or a browser: `docs/export.md`.
# - Notebooks: [inside the network](inside.ipynb), [your own pictures](your_data.ipynb),
#   [many devices](many.ipynb).
