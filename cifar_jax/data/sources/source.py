"""The interface of sources."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.data.dataset import Examples, Split


class Source:
    """A source of datasets; overrides `load`, and what else differs. `config` is config.data
    throughout; a source's own fields are those under its name."""

    default_dir = "CIFAR_JAX_DATA", "~/.cache/cifar_jax"  # environment variable; else folder

    def check(self, config: ConfigDict) -> None:
        """Raises UsageError for a value that cannot work; reads nothing."""

    def holds(self, folder: Path) -> bool:
        """Whether `folder` is laid out as the source reads it, so that `load` writes nothing there;
        looks at names alone."""
        return False

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
