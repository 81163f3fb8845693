"""Orthogonal directions, their size, and Muon as one of the optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax import optim
from cifar_jax.optim import muon


def random_matrix(shape, condition, seed=0):
    """A matrix whose singular values fall from 1 to 1/condition, and its U Vᵀ."""
    u, _, v = np.linalg.svd(np.random.default_rng(seed).normal(size=shape), full_matrices=False)
    values = np.geomspace(1, 1 / condition, min(shape))
    return jnp.asarray((u * values) @ v, jnp.float32), u @ v


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (16, 16), (75, 1)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_all_singular_values_come_near_one(shape, size):
    matrix, expected = random_matrix(shape, condition=20)
    found = np.asarray(muon.orthogonalize(size * matrix))
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.65
    assert values.max() < 1.25
    # The singular vectors stay: what is left is symmetric and positive where U Vᵀ is undone.
    polar = expected.T @ found if shape[0] >= shape[1] else found @ expected.T
    np.testing.assert_allclose(polar, polar.T, atol=1e-4)
    assert np.linalg.eigvalsh(polar).min() > 0.65


def test_the_gram_form_is_newton_schulz():
    matrix, _ = random_matrix((8, 24), condition=100)
    a, b, c = 3.4445, -4.7750, 2.0315
    x = np.float64(matrix) / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    # Each round multiplies the rounding of small singular values by up to 3.4: 3.4^5 float32 ulps.
    np.testing.assert_allclose(muon.orthogonalize(matrix), x, atol=3e-4)


def test_a_gradient_of_zeros_moves_nothing():
    assert not muon.orthogonalize(jnp.zeros((4, 6))).any()


def test_a_kernel_moves_by_a_share_of_its_initial_size():
    """Its root mean square, whatever the gradient's size and whatever the kernel is by now."""
    transform = muon.scale_by_muon()
    kernel = 0.05 * jax.random.normal(jax.random.key(0), (5, 5, 8, 16))
    state = transform.init({"kernel": kernel})
    gradient = 1e3 * jax.random.normal(jax.random.key(1), kernel.shape)
    updates, _ = transform.update({"kernel": gradient}, state, {"kernel": 7 * kernel})
    size = jnp.sqrt(jnp.square(updates["kernel"]).mean())
    assert float(size) == pytest.approx(0.05, rel=0.2)


@pytest.fixture
def options(default):
    default.optim.groups = (
        {"params": "conv1/kernel", "name": "muon"},
        {"params": "*", "learning_rate": 0.2},
    )
    default.optim.update(momentum=0.5, nesterov=True, learning_rate=0.5, schedule="linear")
    default.optim.update(decay_params=("conv1/kernel",), decoupled_decay=True, weight_decay=0.1)
    return default.optim


PARAMS = {
    "conv1": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.array([0.5])},
    "last": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([-1.0])},
}


def test_who_is_moved_by_whom(options):
    """conv1's kernel by Muon, decayed at the rate alone; the others by Nesterov at their own."""
    optimizer = optim.make_optimizer(options, 1.0, 10)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    gradients["conv1"]["kernel"] = jnp.array([[10.0, 0.0], [0.0, 1.0]])
    params, state = PARAMS, optimizer.init(PARAMS)
    velocity = 0.0
    for rate in (1.0, 0.9):  # of the schedule
        before = params
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.5 * velocity + 1.0
        for layer, name in (("conv1", "bias"), ("last", "kernel"), ("last", "bias")):
            moved = (params[layer][name] - before[layer][name]).ravel()[0]
            assert float(moved) == pytest.approx(-rate * 0.2 * (1 + 0.5 * velocity), rel=1e-5)
        direction = muon.orthogonalize(gradients["conv1"]["kernel"])
        scale = 2.0 * 2**0.5  # the initial root mean square, and that of an orthogonal 2x2
        expected = -rate * 0.5 * (scale * direction + 0.1 * before["conv1"]["kernel"])
        moved = params["conv1"]["kernel"] - before["conv1"]["kernel"]
        np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_a_decoupled_decay_has_no_share_in_the_loss(options):
    assert optim.l2_penalty(PARAMS, options) == 0


def test_a_fixed_norm_is_that_of_the_kernel_before_each_update(options):
    """The norm of [n, m] is sqrt(m), whatever it was, and the update is orthogonal by itself."""
    options.groups = ({"params": "*/kernel", "name": "muon", "fixed_norm": True},)
    options.update(momentum=0.0, nesterov=False, weight_decay=0.0)
    optimizer = optim.make_optimizer(options, 1.0, 10)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    gradients["conv1"]["kernel"] = jnp.array([[10.0, 0.0], [0.0, 1.0]])
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    moved = optax.apply_updates(PARAMS, updates)["conv1"]["kernel"]
    direction = muon.orthogonalize(gradients["conv1"]["kernel"])
    expected = jnp.full((2, 2), 2**0.5 / 2) - 0.5 * direction
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_fewer_steps_are_less_orthogonal():
    matrix = jax.random.normal(jax.random.key(0), (8, 16))
    spread = [
        jnp.ptp(jnp.linalg.svd(muon.orthogonalize(matrix, steps), compute_uv=False))
        for steps in (1, 3)
    ]
    assert spread[1] < spread[0]
