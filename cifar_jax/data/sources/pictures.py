"""What the sources of picture files, `folder` and `csv`, have in common."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.data import pictures
from cifar_jax.data.dataset import CHANNELS, MAX_SIDE, Split
from cifar_jax.data.pictures import Listing
from cifar_jax.data.sources.source import Source
from cifar_jax.errors import UsageError


class PictureSource(Source):
    """A source of picture files, in `config.dir`, that are resized to `config.pictures.size`."""

    def check(self, config: ConfigDict) -> None:
        if not config.dir and not config.get("shards"):
            raise UsageError(
                f"config.data.dir is empty: config.data.name = '{config.name}' needs the folder "
                "of your pictures."
            )
        size, channels = config.pictures.size, config.pictures.channels
        whole = all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in size)
        if not whole or len(size) != 2:
            raise UsageError(
                f"config.data.pictures.size = {size}, expected height and width as in (32, 32)."
            )
        if channels not in CHANNELS:
            raise UsageError(
                f"config.data.pictures.channels = {channels}, expected 1 (grey), 3 (RGB) or 4 "
                "(RGB with transparency)."
            )

    def listing(self, config: ConfigDict) -> Listing:
        """The files that make up the dataset. Raises UserError where they make up none."""
        raise NotImplementedError

    def load(self, config: ConfigDict, split: str) -> Split:
        return pictures.load(self.listing(config), self.shape(config), split, self.cache())

    def image_size(self, config: ConfigDict) -> tuple[int, int]:
        height, width = config.pictures.size
        return height, width

    def shape(self, config: ConfigDict) -> tuple[int, int, int]:
        """Of one image: H, W, C."""
        return (*self.image_size(config), config.pictures.channels)

    def cache(self) -> Path:
        """The folder that keeps decoded pictures: never in `config.dir`, which is only read."""
        variable, folder = self.default_dir
        return files.resolve(os.environ.get(variable) or folder, f"${variable}") / "pictures"
