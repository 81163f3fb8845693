"""Picture files of any kind as arrays of one shape: what the network is given of a photograph."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cifar_jax.errors import UserError, reason

MAX_PIXELS = 1 << 26  # of a file, before anything is decoded: 200 MB as RGB
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm"),
        *("ppm", "tga", "tif", "tiff", "webp"),
    )
)  # of files that are looked for in folders
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
_ORIENTATION, _ON_THE_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF's field, and its values
_WIDE = ("I", "F")  # modes of more than 8 bits; also I;16 and its relatives

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is ours


class Unreadable(UserError):
    """A file that is no picture, a damaged one, or one that is too large."""


def _formats() -> list[str]:
    Image.init()
    return sorted(set(Image.ID) - {"EPS"})  # which starts Ghostscript


_FORMATS = _formats()


def decode(source: Path | bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The picture in a file, or in its bytes, as uint8 of `shape` [H, W, C], with C of 1, 3 or 4.

    Upright by its EXIF orientation; transparency over white where C is not 4; of an animation the
    first frame; 16 bits by their upper eight. It is resized until its short side fits `shape`
    (antialiased, bilinear), and the centre is cropped: a picture of that very size stays as it is.
    A JPEG is decoded at a half, quarter or eighth of its size where twice that of `shape` is left.
    Raises Unreadable, without the name of the file.
    """
    height, width, channels = shape
    try:
        with Image.open(_file(source), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(
                    f"it has {image.width:,}x{image.height:,} pixels, expected at most "
                    f"{MAX_PIXELS:,} in all"
                )
            side = 2 * max(height, width)  # either way up
            image.draft(image.mode, (side, side))
            upright = _as_mode(ImageOps.exif_transpose(image), _MODES[channels])
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
            return np.asarray(fitted).reshape(shape)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"it has too many pixels, expected at most {MAX_PIXELS:,}") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("it is not a picture of a known format") from error
    except OSError as error:
        raise Unreadable(reason(error)) from error
    except Exception as error:  # Pillow's plugins have a dozen kinds for damaged bytes
        raise Unreadable(f"it is damaged ({reason(error)})") from error


def size(path: Path) -> tuple[int, int]:
    """Height and width of the upright picture in a file, of which the header is read. Raises
    Unreadable."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # A PNG without EXIF before its pixels would be decoded to look for it behind them.
            known = image.format != "PNG" or "exif" in image.info
            turned = known and image.getexif().get(_ORIENTATION) in _ON_THE_SIDE
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as in `decode`
        raise Unreadable(reason(error)) from error


def _file(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in _WIDE:
        image = _of_8_bits(image)
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Grey of up to 16 bits a pixel, by the upper eight; of floats, what 0 to 1 or 0 to 255 is."""
    values = np.asarray(image)
    if image.mode == "F":
        values = values * (255.0 if values.max(initial=0) <= 1 else 1.0)
    elif image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values // 256
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
