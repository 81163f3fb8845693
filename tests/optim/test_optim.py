"""The chain against numbers worked out by hand, and every schedule at its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax import optim
from cifar_jax.errors import UsageError

PARAMS = {
    "conv1": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])},
    "local3": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([-1.0])},
}
GRADIENTS = jax.tree.map(lambda p: jnp.full_like(p, 0.25), PARAMS)


@pytest.fixture
def options(default):
    default.optim.decay_layers = ("local3",)
    return default.optim


def run(optimizer, steps):
    """The parameters and the averages after each of `steps` updates by GRADIENTS."""
    params, state, history = PARAMS, optimizer.init(PARAMS), []
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, optim.averages(state)))
    return history


def test_chain_by_hand(options):
    """L2 0.004 on local3's kernel alone, plain SGD, a staircase every 2 steps, the average."""
    options.decay_epochs = 2.0
    schedule = optim.make_schedule(options, steps_per_epoch=1.0, num_steps=10)
    history = run(optim.make_optimizer(options, schedule), 5)
    kernel, decayed, average = -2.0, 4.0, -2.0
    for n, (params, averages) in enumerate(history):
        rate = 0.1 * 0.1 ** (n // 2)
        kernel -= rate * 0.25
        decayed -= rate * (0.25 + 0.004 * decayed)
        average -= (1 - min(0.9999, (1 + n + 1) / (10 + n + 1))) * (average - kernel)
        assert params["conv1"]["kernel"][1] == pytest.approx(kernel, rel=1e-6)
        assert params["local3"]["kernel"][1] == pytest.approx(decayed, rel=1e-6)
        assert params["local3"]["bias"][0] == pytest.approx(
            -1 - sum(0.025 * 0.1 ** (k // 2) for k in range(n + 1)), rel=1e-6
        )
        assert averages["conv1"]["kernel"][1] == pytest.approx(average, rel=1e-6)


def test_decay_is_the_gradient_of_the_l2_penalty(options):
    options.weight_decay = 0.1
    penalty, gradient = jax.value_and_grad(optim.l2_penalty)(PARAMS, options)
    assert float(penalty) == pytest.approx(0.1 * 0.5 * 25)
    decay = optax.add_decayed_weights(0.1, mask=optim.kernels(PARAMS, ("local3",), ""))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    expected, _ = decay.update(zeros, decay.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_allclose, gradient, expected)


def test_momentum_by_hand(options):
    options.momentum, options.weight_decay, options.schedule = 0.9, 0.0, "constant"
    history = run(optim.make_optimizer(options, optim.make_schedule(options, 1.0, 9)), 3)
    velocity, value = 0.0, 1.0
    for params, _ in history:
        velocity = 0.9 * velocity + 0.25
        value -= 0.1 * velocity
        assert params["conv1"]["kernel"][0] == pytest.approx(value, rel=1e-6)


def test_the_average_stops_at_its_decay(options):
    transform = optim.average_parameters(0.5)
    state = transform.init(PARAMS)._replace(updates=jnp.int32(1000))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    moved = jax.tree.map(lambda p: p + 1, PARAMS)
    _, state = transform.update(zeros, state, moved)
    np.testing.assert_allclose(state.average["conv1"]["bias"], 0.5 + 0.5)


def test_an_unknown_decay_layer_is_named(options):
    options.decay_layers = ("local33",)
    with pytest.raises(UsageError, match="Unknown layer .* 'local33'. Did you mean 'local3'"):
        optim.make_optimizer(options, lambda _: 0.1).init(PARAMS)


def schedule_values(options, steps, **fields):
    options.update(learning_rate=1.0, **fields)
    schedule = optim.make_schedule(options, steps_per_epoch=10.0, num_steps=100)
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
    ("fields", "steps", "expected"),
    [
        ({"schedule": "constant"}, (0, 50, 200), (1, 1, 1)),
        # 2.59 epochs of 10 steps: 25 steps, truncated as the tutorial's are.
        (
            {"schedule": "exponential", "decay_epochs": 2.59},
            (0, 24, 25, 49, 50),
            (1, 1, 0.1, 0.1, 0.01),
        ),
        ({"schedule": "cosine"}, (0, 50, 100), (1, 0.5, 0)),
        ({"schedule": "linear", "final_factor": 0.2}, (0, 50, 100, 150), (1, 0.6, 0.2, 0.2)),
        ({"schedule": "constant", "warmup_epochs": 2.0}, (0, 5, 10, 20, 30), (0, 0.25, 0.5, 1, 1)),
        ({"schedule": "linear", "warmup_epochs": 2.0}, (10, 20, 60, 100), (0.5, 1, 0.5, 0)),
        ({"schedule": "cosine", "warmup_epochs": 2.0}, (10, 20, 60, 100), (0.5, 1, 0.5, 0)),
    ],
)
def test_schedules(options, fields, steps, expected):
    assert schedule_values(options, steps, **fields) == pytest.approx(expected, abs=1e-6)


def test_the_tutorials_staircase_is_136718_steps(default):
    schedule = optim.make_schedule(default.optim, 50_000 / 128, 100_000)
    assert [float(schedule(n)) for n in (0, 136_717, 136_718)] == pytest.approx([0.1, 0.1, 0.01])


def test_loss_scale_skips_what_overflows_and_recovers(options):
    options.weight_decay, options.schedule = 0.0, "constant"
    plain = optim.make_optimizer(options, optim.make_schedule(options, 1.0, 9))
    optimizer = optim.scale_loss(plain, start=8.0, patience=2)
    state = optimizer.init(PARAMS)
    scaled = jax.tree.map(lambda g: 8.0 * g, GRADIENTS)
    infinite = jax.tree.map(lambda g: g * jnp.inf, GRADIENTS)

    updates, skipped = optimizer.update(infinite, state, PARAMS)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    assert float(optim.loss_scale(skipped)) == 4.0
    jax.tree.map(np.testing.assert_array_equal, skipped.inner, state.inner)

    updates, once = optimizer.update(scaled, state, PARAMS)
    expected, _ = plain.update(GRADIENTS, plain.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_allclose, updates, expected)
    assert float(optim.loss_scale(once)) == 8.0
    _, twice = optimizer.update(scaled, once, PARAMS)
    assert float(optim.loss_scale(twice)) == 16.0
    assert optim.averages(twice) is not None


def test_without_scaling_the_factor_is_one(options):
    state = optim.make_optimizer(options, lambda _: 0.1).init(PARAMS)
    assert optim.loss_scale(state) == 1.0


@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (np.nan, False), (-np.inf, False)])
def test_all_finite(value, expected):
    assert bool(optim.all_finite({"a": jnp.ones(3), "b": jnp.array([0.0, value])})) is expected
