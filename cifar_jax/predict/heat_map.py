"""Which part of an image a classification rests on, by occlusion (Zeiler and Fergus, Visualizing
and Understanding Convolutional Networks, 2014, section 4.2).

A square of the image is covered, and the probability of its class falls or rises. That says where
the network looked, not what it saw there; of two places that tell the same, covering either may
change nothing; and the square itself is something that no training image had.
"""

from collections.abc import Callable, Sequence

import numpy as np

from cifar_jax.telemetry import display, pictures

_PARTS = 4  # squares side by side in each dimension; they overlap by half
_WIDTH = 192  # of a drawn image, in screen pixels, about
_FALLS, _RISES = np.array([214, 40, 40]), np.array([38, 84, 200])
_FAINT = 0.01  # of probability: what changes less is not worth a colour


def occlusion(predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """By how much the probability of the image's class falls where it is covered: float32 [h, w],
    for each pixel the mean over all squares that cover it; negative where it rises.

    `image` is standardised, float32 [h, w, C], so that the squares are 0, a mean; `predict` takes
    [n, h, w, C] to probabilities [n, classes]. A square is a quarter of each side.
    """
    squares = list(_squares(*image.shape[:2]))
    covered = np.repeat(image[None], 1 + len(squares), 0)
    for place, square in enumerate(squares, 1):
        covered[place][square] = 0
    probabilities = predict(covered)
    of_class = probabilities[:, probabilities[0].argmax()]
    total, count = np.zeros(image.shape[:2], np.float32), np.zeros(image.shape[:2], np.float32)
    for square, probability in zip(squares, of_class[1:], strict=True):
        total[square] += of_class[0] - probability
        count[square] += 1
    return total / count


def _squares(height: int, width: int) -> list[tuple[slice, slice]]:
    """That cover the image, each half over the one before it."""

    def spans(side: int) -> list[slice]:
        size = -(-side // _PARTS)
        starts = range(0, side - size + 1, max(1, size // 2))
        return [slice(start, start + size) for start in sorted({*starts, side - size})]

    return [(rows, columns) for rows in spans(height) for columns in spans(width)]


def pictures_of(seen: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [h, w, 3] both: what the network saw, standardised [h, w, C]; and the same in grey, red
    where covering it lowers the probability of the first class, blue where that raises it."""
    image = pictures.rgb(pictures.visible(seen[None]))[0]
    strength = np.abs(heat)[..., None] / max(np.abs(heat).max(), _FAINT)
    grey = image.mean(-1, keepdims=True) / 2 + 96  # paler, for the colours to be seen
    colour = np.where(heat[..., None] > 0, _FALLS, _RISES)
    return image, (grey + 0.7 * strength * (colour - grey)).clip(0, 255).astype(np.uint8)


def draw(seen: np.ndarray, heat: np.ndarray, classes: Sequence[tuple[str, float]]) -> np.ndarray:
    """uint8 [H, W, 3]: `pictures_of` both side by side, with the most probable `classes` below the
    first, and what the colours stand for below the second."""
    answer = "\n".join(f"{display.plain(name)} {p:.1%}" for name, p in classes)
    lowest, highest = min(heat.min(), 0), max(heat.max(), 0)
    legend = f"covered: {display.plain(classes[0][0])}\nred: -{highest:.0%} at most\n"
    legend += f"blue: +{-lowest:.0%} at most"
    both = np.stack(pictures_of(seen, heat))
    return pictures.grid(both, [answer, legend], columns=2, scale=max(1, _WIDTH // seen.shape[1]))
