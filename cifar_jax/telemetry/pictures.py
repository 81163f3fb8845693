"""Pictures for TensorBoard, the report and notebooks, drawn by Pillow: uint8 arrays [H, W, 3]."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from PIL import Image, ImageDraw, ImageFont

_SCALE = 4  # screen pixels of an image's pixel
_LINE = 13  # of a caption, in screen pixels
_BACKGROUND, _INK, _BLUE = (255, 255, 255), (0, 0, 0), (0, 60, 130)
_DARK, _PALE, _PALE_BLUE = (22, 25, 29), (228, 228, 228), (198, 219, 239)  # of dark pages
_GREY = (128, 128, 128)
MAX_NAMED = 20  # classes whose names and counts a confusion matrix has room for


def grid(
    images: np.ndarray, captions: Sequence[str], columns: int = 4, scale: int = _SCALE
) -> np.ndarray:
    """Images [N, h, w, C] side by side, `scale` times as large, each with its caption's lines
    below."""
    images = rgb(images)
    font = ImageFont.load_default(11)
    lines = max(caption.count("\n") + 1 for caption in captions)
    height, width = (size * scale for size in images.shape[1:3])
    cell = (width + 8, height + lines * _LINE + 8)
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * cell[0], rows * cell[1]), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = place % columns * cell[0] + 4, place // columns * cell[1] + 4
        enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (left, top))
        for number, line in enumerate(caption.split("\n")):
            while font.getlength(line) > width:
                line = line[:-2] + "…"
            draw.text((left, top + height + number * _LINE), line, (0, 0, 0), font)
    return np.asarray(canvas)


class Shown:
    """A picture that a notebook shows, with `alt` for who cannot see it: a uint8 array [H, W, 3] or
    the bytes of a PNG, `width` screen pixels wide."""

    def __init__(self, picture: np.ndarray | bytes, alt: str, width: int | None = None):
        self.picture, self.alt, self.width = picture, alt, width

    def _repr_html_(self) -> str:
        width = f' width="{self.width}"' if self.width else ""
        return f'<img src="{data_url(self.picture)}" alt="{html.escape(self.alt)}"{width}>'


def data_url(picture: np.ndarray | bytes) -> str:
    """Of a uint8 array [H, W, 3] or [H, W], or the bytes of a PNG."""
    if isinstance(picture, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        picture = file.getvalue()
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def rgb(images: np.ndarray) -> np.ndarray:
    """Images [..., C] as [..., 3]: grey three times, and of four channels the first three."""
    return images.repeat(3, -1) if images.shape[-1] == 1 else images[..., :3]


def visible(images: np.ndarray) -> np.ndarray:
    """Standardised images [N, h, w, C] as uint8: what the network sees, 2.5 deviations to 0–255."""
    return np.clip(np.nan_to_num(images) * (127.5 / 2.5) + 127.5, 0, 255).astype(np.uint8)


def colour_kernel(params: Mapping[str, Any]) -> np.ndarray | None:
    """The kernel [k, k, 3, D] of the first convolution of colours, at any depth; or None."""
    kernels = traverse_util.flatten_dict(params).values()
    of_colours = (leaf for leaf in kernels if leaf.ndim == 4 and leaf.shape[2] == 3)
    return next(map(np.asarray, of_colours), None)


def filters(kernel: np.ndarray, columns: int = 8) -> np.ndarray:
    """The filters of a first convolution [h, w, 3, N] as one picture, on one common scale."""
    kernel = np.nan_to_num(kernel)
    low, high = kernel.min(), kernel.max()
    values = ((kernel - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    height, width, _, count = values.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), 255, np.uint8)
    for place in range(count):
        top, left = place // columns * (height + 1) + 1, place % columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = values[..., place]
    return canvas.repeat(2 * _SCALE, 0).repeat(2 * _SCALE, 1)


def confusion(
    matrix: np.ndarray, names: Sequence[str], dark: bool = False, scale: int = 1
) -> np.ndarray:
    """int [n, n], labels as rows: fractions of each row as shades of blue, with the counts inside.

    Where there are more than `MAX_NAMED` classes, there is room for neither names nor counts.
    `dark` is for pages of that kind; `scale` is for screens with smaller pixels.
    """
    count, back, ink = len(names), *((_DARK, _PALE) if dark else (_BACKGROUND, _INK))
    font, line = ImageFont.load_default(11 * scale), _LINE * scale
    named = count <= MAX_NAMED
    cell = (38 if named else max(4, 760 // count)) * scale
    margin = int(max(map(font.getlength, names))) + 28 * scale if named else 12 * scale
    size = margin + count * cell + 4 * scale
    canvas = Image.new("RGB", (size, size), back)
    draw = ImageDraw.Draw(canvas)
    # The root, so that few mistakes show, too: off the diagonal all is small.
    shares = (matrix / np.maximum(matrix.sum(1, keepdims=True), 1)) ** 0.5
    for row, column in np.ndindex(*matrix.shape):
        shade = np.add(back, shares[row, column] * np.subtract(_PALE_BLUE if dark else _BLUE, back))
        x, y, end = margin + column * cell, margin + row * cell, cell - 2 * scale
        draw.rectangle((x, y, x + end, y + end), tuple(shade.astype(int).tolist()))
        if named and matrix[row, column]:
            inside = ink if shares[row, column] < 0.6 else back
            middle = (x + cell // 2, y + cell // 2)
            draw.text(middle, str(matrix[row, column]), inside, font, anchor="mm")
    if named:
        for place, name in enumerate(names):
            centre = margin + place * cell + cell // 2
            draw.text((margin - 6 * scale, centre), name, ink, font, anchor="rm")
            upright = Image.new("RGB", (int(font.getlength(name)) + 2 * scale, line), back)
            ImageDraw.Draw(upright).text((0, 0), name, ink, font)
            upright = upright.rotate(90, expand=True)  # read from below
            canvas.paste(upright, (centre - line // 2, margin - 6 * scale - upright.height))
        draw.text((4 * scale, 2 * scale), "rows: label, columns: predicted", _GREY, font)
    return np.asarray(canvas)
