"""Pictures for TensorBoard, drawn small and fast: uint8 arrays [H, W, 3]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from PIL import Image, ImageDraw, ImageFont

_SCALE = 4  # screen pixels of an image's pixel
_LINE = 13  # of a caption, in screen pixels
_BACKGROUND = (255, 255, 255)


def grid(images: np.ndarray, captions: Sequence[str], columns: int = 4) -> np.ndarray:
    """Images [N, h, w, 3] side by side, enlarged, each with its caption's lines below."""
    font = ImageFont.load_default(11)
    lines = max(caption.count("\n") + 1 for caption in captions)
    height, width = (size * _SCALE for size in images.shape[1:3])
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


def visible(images: np.ndarray) -> np.ndarray:
    """Standardised images [N, h, w, 3] as uint8: what the network sees, 2.5 deviations to 0–255."""
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


def confusion(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """int [n, n], labels as rows: shares of each row as shades of blue, with the counts inside."""
    count = len(names)
    font = ImageFont.load_default(11)
    cell = 38 if count <= 20 else max(4, 760 // count)
    margin = int(max(font.getlength(name) for name in names)) + 28 if count <= 20 else 12
    canvas = Image.new("RGB", (margin + count * cell + 4, margin + count * cell + 4), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for row, column in np.ndindex(*matrix.shape):
        share = shares[row, column] ** 0.5  # so that few mistakes show, too
        shade = tuple(int(255 - share * (255 - end)) for end in (0, 60, 130))
        left, top = margin + column * cell, margin + row * cell
        draw.rectangle((left, top, left + cell - 2, top + cell - 2), shade)
        if count <= 20:
            ink = (255, 255, 255) if share > 0.6 else (0, 0, 0)
            inside = (left + cell // 2, top + cell // 2)
            draw.text(inside, str(matrix[row, column]), ink, font, anchor="mm")
    if count <= 20:
        for place, name in enumerate(names):
            middle = margin + place * cell + cell // 2
            draw.text((margin - 6, middle), name, (0, 0, 0), font, anchor="rm")
            _draw_upright(canvas, name, (middle, margin - 6), font)
        draw.text((4, 2), "rows: label, columns: taken for", (90, 90, 90), font)
    return np.asarray(canvas)


def _draw_upright(canvas: Image.Image, text: str, foot: tuple[int, int], font: Any) -> None:
    """Text that is read from below, ending at `foot`."""
    strip = Image.new("RGB", (int(font.getlength(text)) + 2, _LINE), _BACKGROUND)
    ImageDraw.Draw(strip).text((0, 0), text, (0, 0, 0), font)
    strip = strip.rotate(90, expand=True)
    canvas.paste(strip, (foot[0] - strip.width // 2, foot[1] - strip.height))
