"""The interface of sources."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.data.dataset import CHANNELS, MAX_SIDE, Examples, Split
from cifar_jax.errors import UsageError


class Source:
    """A source of datasets; overrides `load`, and what else differs. `config` is config.data
    throughout; a source's own fields are those under its name."""

    default_dir = "CIFAR_JAX_DATA", "~/.cache/cifar_jax"  # environment variable; else folder

    def check(self, config: ConfigDict) -> None:
        """Raises UsageError for a value that cannot work; reads nothing."""

    def image_size(self, config: ConfigDict) -> tuple[int, int] | None:
        """Height and width, where known before anything is read."""
        return None

    def load(self, config: ConfigDict, split: str) -> Split:
        """The split 'train' or 'test', which may be empty. Raises UserError for bad files."""
        raise NotImplementedError

    def examples(self, config: ConfigDict, split: str) -> Examples:
        """As `load`, but one image at a time where they are stored that way."""
        return self.load(config, split)

    def title(self, config: ConfigDict) -> str:
        """The dataset's name."""
        return config.name

    def dir(self, config: ConfigDict) -> Path:
        """Absolute: `config.dir`, or else the default. Raises UsageError for what is not a path, or
        where there is no home folder."""
        variable, folder = self.default_dir
        return files.resolve(config.dir or os.environ.get(variable) or folder, "config.data.dir")


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
