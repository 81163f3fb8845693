"""Street View House Numbers, cropped digits (Netzer et al., Reading Digits in Natural Images with
Unsupervised Feature Learning, 2011): MATLAB files, in which the digit 0 is labelled 10.

73,257 images for training, 531,131 more that are easier (config.data.svhn.extra), 26,032 for the
test; downloaded where they are missing.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.data import download
from cifar_jax.data.dataset import Split
from cifar_jax.data.sources.source import Source
from cifar_jax.errors import UserError, reason

_SIZE = 32
_DIGITS = tuple(map(str, range(10)))
_MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}
FILES = {
    part: download.File(f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat", md5)
    for part, md5 in _MD5.items()
}


class Svhn(Source):
    def holds(self, folder: Path) -> bool:
        return any((part / FILES["train"].name).exists() for part in (folder, folder / "svhn"))

    def image_size(self, config: ConfigDict) -> tuple[int, int]:
        return _SIZE, _SIZE

    def load(self, config: ConfigDict, split: str) -> Split:
        folder = self.dir(config)
        parts = ["train", "extra"] if split == "train" and config.svhn.extra else [split]
        found = [read(_find(FILES[part], folder)) for part in parts]
        images, labels = map(np.concatenate, zip(*found, strict=True))
        return Split(images, labels, _DIGITS)


def _find(file: download.File, folder: Path) -> Path:
    """In the folder itself, where somebody put it, or else in its "svhn"."""
    by_hand = folder / file.name
    return by_hand if by_hand.exists() else download.ensure_file(file, folder / "svhn")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N] of a file with X [32, 32, 3, N] and y
    [N, 1], 1 to 10. Raises UserError where it cannot be read or holds other arrays."""
    from scipy import io  # takes a while

    try:
        found = io.loadmat(path, variable_names=["X", "y"])
        images, labels = found["X"], found["y"].ravel()
    except KeyError as error:
        raise _wrong(path, f"it has no array {error}") from error
    except NotImplementedError as error:  # MATLAB 7.3, which is HDF5
        raise _wrong(path, "it is of MATLAB 7.3") from error
    except Exception as error:  # scipy has a dozen kinds for damaged bytes
        raise _wrong(path, reason(error)) from error
    if images.dtype != np.uint8 or images.shape[:3] != (_SIZE, _SIZE, 3) or images.ndim != 4:
        raise _wrong(path, f"X is {images.dtype} {list(images.shape)}")
    if labels.dtype.kind not in "iu" or len(labels) != images.shape[3]:
        raise _wrong(path, f"y is {labels.dtype} {list(found['y'].shape)}")
    if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
        raise _wrong(path, f"y has labels from {labels.min()} to {labels.max()}")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int32) % 10


def _wrong(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path}: {problem}, expected a MATLAB 5 file with X uint8 [32, 32, 3, N] and y [N, 1] of "
        "1 to 10. Fetch it again from ufldl.stanford.edu/housenumbers."
    )
