"""docs/exercises.md: its numbers."""

import jax
import jax.numpy as jnp
import pytest


def of_probabilities(logits):
    return -jnp.log(jax.nn.softmax(logits))[0]


def of_logits(logits):
    return -jax.nn.log_softmax(logits)[0]


@pytest.mark.parametrize("gap", [10.0, 87.0, 88.0, 104.0])
def test_a_logarithm_of_probabilities_is_lost_where_one_of_logits_is_not(gap):
    logits = jnp.array([0.0, gap])
    loss, gradient = jax.value_and_grad(of_logits)(logits)
    assert float(loss) == pytest.approx(gap, rel=1e-5)
    assert gradient.tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)
    loss, gradient = jax.value_and_grad(of_probabilities)(logits)
    assert bool(jnp.isfinite(loss)) is (gap < 88)
    assert bool(jnp.isfinite(gradient).all()) is (gap < 88)


def test_neither_sees_a_lead_of_17(gap=17.0):
    logits = jnp.array([gap, 0.0])
    assert of_logits(logits) == of_probabilities(logits) == 0
