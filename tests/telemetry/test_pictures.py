"""Pictures have what they are drawn from in the right places."""

import numpy as np

from cifar_jax.telemetry import pictures


def test_a_grid_enlarges_and_captions_each_image():
    images = np.zeros((5, 6, 6, 3), np.uint8)
    images[4] = (255, 0, 0)
    found = pictures.grid(images, ["cat", "dog", "a very long name indeed", "x\ny", "red"])
    assert found.dtype == np.uint8
    assert found.shape == (2 * (24 + 26 + 8), 4 * 32, 3)
    assert (found[58 + 4, 4] == (255, 0, 0)).all()  # the fifth begins the second row
    assert (found[4, 4] == 0).all()
    assert (found[28:54, 4:28] < 128).any()  # ink of "cat"
    assert (found[28:54, 92:96] == 255).all()  # the long caption ends before the next cell


def test_grey_pictures_and_those_of_four_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1)
    found = pictures.grid(grey, ["cat"])
    assert found[4:16:4, 4:20:4].tolist() == np.stack([grey[0, ..., 0]] * 3, -1).tolist()
    four = np.full((1, 3, 4, 4), (1, 2, 3, 0), np.uint8)
    assert (pictures.grid(four, ["cat"])[4:16, 4:20] == (1, 2, 3)).all()


def test_visible_spans_the_usual_values():
    found = pictures.visible(np.array([-9.0, -2.5, 0.0, 2.5, 9.0, np.nan]))
    assert found.tolist() == [0, 0, 127, 255, 255, 127]


def test_filters_share_one_scale_and_lie_in_their_order():
    kernel = np.zeros((2, 2, 3, 10), np.float32)
    kernel[..., 9] = 1.0
    found = pictures.filters(kernel, columns=8)
    assert found.shape == (7 * 8, 25 * 8, 3)
    assert (found[8:24, 8:24] == 0).all()  # the first
    assert (found[32:48, 32:48] == 255).all()  # the tenth: second row, second column
    assert (found[:8] == 255).all()  # a line between
    assert pictures.filters(np.full((2, 2, 3, 1), np.nan)).any()


def test_confusion_is_darkest_where_all_are():
    matrix = np.array([[10, 0], [5, 5]])
    found = pictures.confusion(matrix, ["cat", "dog"]).astype(int)
    cells = found[-80:-4, -80:-4].reshape(2, 38, 2, 38, 3)[:, 2, :, 2].sum(-1)
    assert cells[0, 0] < cells[1, 0] == cells[1, 1] < cells[0, 1] == 3 * 255


def test_a_dark_confusion_is_brightest_where_all_are_and_twice_as_large_for_small_pixels():
    matrix = np.array([[10, 0], [5, 5]])
    dark = pictures.confusion(matrix, ["cat", "dog"], dark=True, scale=2).astype(int)
    cells = dark[-160:-8, -160:-8].reshape(2, 76, 2, 76, 3)[:, 4, :, 4].sum(-1)
    assert cells[0, 0] > cells[1, 0] == cells[1, 1] > cells[0, 1] == sum((22, 25, 29))


def test_many_classes_go_without_words():
    matrix = np.eye(100, dtype=int)
    assert pictures.confusion(matrix, [f"class {n}" for n in range(100)]).shape[0] < 800


def test_the_kernel_of_colours_at_any_depth():
    kernel = np.ones((2, 2, 3, 8))
    others = {"conv": {"kernel": np.ones((3, 3, 8, 8))}, "norm": {"bias": np.ones(8)}}
    assert pictures.colour_kernel({"group": others, "whiten": {"kernel": kernel}}) is kernel
    assert pictures.colour_kernel({"group": others}) is None
