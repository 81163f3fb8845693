"""Images that grow: their sizes by step, and training through all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import config as config_lib
from cifar_jax import inputs
from cifar_jax.inputs import Curriculum


def shapes_at(curriculum, step):
    """The size of the images that the function is applied to."""

    def size_of(images):
        return jnp.int32(images.shape[1])

    images = jnp.ones((2, 32, 32, 3))
    return int(jax.jit(lambda s, x: curriculum.apply(s, size_of, x))(step, images))


def test_sizes_follow_the_steps():
    config = config_lib.recipe("airbench94").inputs
    config.curriculum = ((3, 24), (4.5, 28))
    curriculum = inputs.curriculum(config, steps_per_epoch=10)
    assert curriculum == Curriculum((30, 45), (24, 28))
    steps = (0, 29, 30, 44, 45, 1_000)
    assert [shapes_at(curriculum, jnp.int32(step)) for step in steps] == [24, 24, 28, 28, 32, 32]


def test_without_parts_nothing_is_added():
    def text(curriculum):
        function = lambda step, x: curriculum.apply(step, jnp.sum, x)  # noqa: E731
        return jax.jit(function).lower(jnp.int32(0), jnp.ones((2, 4, 4, 1))).as_text()

    assert "case" not in text(Curriculum())
    assert "case" in text(Curriculum((1,), (2,)))


def test_resizing_is_bilinear_between_the_centres_of_pixels():
    ramp = jnp.broadcast_to(jnp.arange(32.0)[:, None, None], (1, 32, 32, 1))
    found = Curriculum((1,), (16,)).apply(jnp.int32(0), lambda x: x.mean(), ramp)
    assert float(found) == pytest.approx(15.5)
    rows = Curriculum((1,), (24,)).apply(
        jnp.int32(0), lambda x: jnp.resize(x[0, :, 0, 0], 32), ramp
    )
    centres = (np.arange(24) + 0.5) * 32 / 24 - 0.5
    np.testing.assert_allclose(rows[:24], centres, atol=1e-5)


@pytest.mark.parametrize(
    ("curriculum", "words"),
    [
        ((3, 24), "expected pairs of the epoch"),
        (((3, 24.5),), "expected pairs of the epoch"),
        (((3, 24), (3, 28)), "epoch 3 after 3, expected later ones"),
        (((0, 24),), "epoch 0 after 0.0"),
        (((3, 33),), "images of 33 pixels, expected 1 to those of config.inputs.size = (32, 32)"),
        (((3, 0),), "images of 0 pixels"),
    ],
)
def test_a_curriculum_that_cannot_be(curriculum, words):
    config = config_lib.recipe("airbench94")
    config.inputs.curriculum = curriculum
    with pytest.raises(inputs.checks.UsageError, match="config.inputs.curriculum") as error:
        inputs.validate(config.inputs)
    assert words in str(error.value)
