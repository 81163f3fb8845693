"""CIFAR-10 and CIFAR-100 in their publisher's binary version, downloaded where they are missing."""

from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax.data import download, native
from cifar_jax.data.dataset import Split
from cifar_jax.data.sources.source import Source
from cifar_jax.errors import UserError

CIFAR10 = download.Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
)
CIFAR100 = download.Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size=168_513_733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
)


class Cifar10(Source):
    def image_size(self, config: ConfigDict) -> tuple[int, int]:
        return native.SIZE, native.SIZE

    def load(self, config: ConfigDict, split: str) -> Split:
        train_files = [f"data_batch_{number}.bin" for number in range(1, 6)]
        return read_cifar10(_binary(CIFAR10, self.dir(config)), split, train_files)


class Cifar100(Source):
    def image_size(self, config: ConfigDict) -> tuple[int, int]:
        return native.SIZE, native.SIZE

    def load(self, config: ConfigDict, split: str) -> Split:
        folder = _binary(CIFAR100, self.dir(config))
        names = native.read_names(folder / "fine_label_names.txt", 100)
        return Split(*native.read([folder / f"{split}.bin"], 100, label_bytes=2), names)


def read_cifar10(folder: Path, split: str, train_files: list[str]) -> Split:
    """A folder in CIFAR-10's layout, which has its training images in `train_files`."""
    wanted = train_files if split == "train" else ["test_batch.bin"]
    names = native.read_names(folder / "batches.meta.txt", 10)
    return Split(*native.read([folder / name for name in wanted], 10), names)


def _binary(archive: download.Archive, folder: Path) -> Path:
    """The folder of the binary version: `folder` itself, or in it, or downloaded into it.

    Raises UserError where the version for Python or MATLAB is there instead.
    """
    if folder.name == archive.folder and folder.is_dir():
        return folder
    if not (folder / archive.folder).exists() and not (folder / archive.name).exists():
        name = archive.name.removesuffix("-binary.tar.gz")
        for other in (f"{name}-batches-py", f"{name}-python", f"{name}-python.tar.gz"):
            if (folder / other).exists():
                raise UserError(
                    f"{folder / other} is another version of the dataset, expected the binary "
                    f"one: put {archive.name} from {archive.url} there, or choose another "
                    "--config.data.dir to have it downloaded."
                )
    return download.ensure(archive, folder)
