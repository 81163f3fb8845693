"""CIFAR-10 and CIFAR-100 as their publisher has them: the binary version, downloaded where it is
missing, or the version for Python where that is there.
"""

from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax.data import download, native, python_version
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
    def holds(self, folder: Path) -> bool:
        return _unpacked(folder, CIFAR10, "cifar-10-batches-py")

    def image_size(self, config: ConfigDict) -> tuple[int, int]:
        return native.SIZE, native.SIZE

    def load(self, config: ConfigDict, split: str) -> Split:
        folder, numbers = self.dir(config), range(1, 6)
        if found := _python(folder, CIFAR10, "cifar-10-batches-py"):
            wanted = [f"data_batch_{n}" for n in numbers] if split == "train" else ["test_batch"]
            names = python_version.read_names(found / "batches.meta", "label_names", 10)
            paths = [found / name for name in wanted]
            return Split(*python_version.read(paths, "labels", 10), names)
        train_files = [f"data_batch_{number}.bin" for number in numbers]
        return read_cifar10(_binary(CIFAR10, folder), split, train_files)


class Cifar100(Source):
    def holds(self, folder: Path) -> bool:
        return _unpacked(folder, CIFAR100, "cifar-100-python")

    def image_size(self, config: ConfigDict) -> tuple[int, int]:
        return native.SIZE, native.SIZE

    def load(self, config: ConfigDict, split: str) -> Split:
        folder = self.dir(config)
        if found := _python(folder, CIFAR100, "cifar-100-python"):
            names = python_version.read_names(found / "meta", "fine_label_names", 100)
            return Split(*python_version.read([found / split], "fine_labels", 100), names)
        folder = _binary(CIFAR100, folder)
        names = native.read_names(folder / "fine_label_names.txt", 100)
        return Split(*native.read([folder / f"{split}.bin"], 100, label_bytes=2), names)


def read_cifar10(folder: Path, split: str, train_files: list[str]) -> Split:
    """A folder in CIFAR-10's layout, which has its training images in `train_files`."""
    wanted = train_files if split == "train" else ["test_batch.bin"]
    names = native.read_names(folder / "batches.meta.txt", 10)
    return Split(*native.read([folder / name for name in wanted], 10), names)


def _python(folder: Path, archive: download.Archive, name: str) -> Path | None:
    """The folder of the version for Python, unpacked: `folder` itself, or in it where there is no
    binary version. None without one."""
    if folder.name == name and folder.is_dir():
        return folder
    binary = (folder / archive.folder, folder / archive.name)
    if any(path.exists() for path in binary) or not (folder / name).is_dir():
        return None
    return folder / name


def _unpacked(folder: Path, archive: download.Archive, python: str) -> bool:
    binary = folder if folder.name == archive.folder else folder / archive.folder
    return binary.is_dir() or _python(folder, archive, python) is not None


def _binary(archive: download.Archive, folder: Path) -> Path:
    """The folder of the binary version: `folder` itself, or in it, or downloaded into it.

    Raises UserError where the version for Python is there, but still packed.
    """
    if folder.name == archive.folder and folder.is_dir():
        return folder
    packed = folder / archive.name.replace("-binary", "-python")
    there = (folder / archive.folder).exists() or (folder / archive.name).exists()
    if packed.exists() and not there:
        raise UserError(
            f"{packed} is packed, expected its folder beside it: tar -xzf {packed} -C {folder}"
        )
    return download.ensure(archive, folder)
