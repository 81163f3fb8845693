"""The chain against numbers worked out by hand, and every schedule at its corners."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cifar_jax import optim
from cifar_jax.errors import UsageError
from cifar_jax.optim import ema

PARAMS = {
    "conv1": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])},
    "local3": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([-1.0])},
}
GRADIENTS = jax.tree.map(lambda p: jnp.full_like(p, 0.25), PARAMS)


@pytest.fixture
def options(default):
    default.optim.decay_params = ("local3/kernel",)
    return default.optim


def run(options, steps, params=PARAMS, gradients=GRADIENTS):
    """The parameters and their EMA after each of `steps` updates; 10 steps, one an epoch."""
    optimizer = optim.make_optimizer(options, steps_per_epoch=1.0, num_steps=10)
    state, average, history = optimizer.init(params), params, []
    for step in range(steps):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        average = ema.update(average, params, step + 1, options.ema_decay)
        history.append((params, average))
    return history


def test_chain_by_hand(options):
    """L2 0.004 on local3's kernel alone, plain SGD, a staircase every 2 steps, the EMA."""
    options.decay_epochs = 2.0
    kernel, decayed, average = -2.0, 4.0, -2.0
    for n, (params, averages) in enumerate(run(options, 5)):
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
    options.update(weight_decay=0.1, schedule="constant", learning_rate=1.0)
    penalty, gradient = jax.value_and_grad(optim.l2_penalty)(PARAMS, options)
    assert float(penalty) == pytest.approx(0.1 * 0.5 * 25)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    ((moved, _),) = run(options, 1, gradients=zeros)
    jax.tree.map(
        lambda p, q, g: np.testing.assert_allclose(p - q, g, 1e-5), PARAMS, moved, gradient
    )


def test_each_group_has_its_own_decay_and_share_in_the_penalty(options):
    options.groups = (
        {"params": "conv1/*", "weight_decay": 0.5},
        {"params": "local3/bias", "weight_decay": 0.5, "decoupled_decay": True},
    )
    penalty = 0.5 * 0.5 * (1 + 4 + 0.25) + 0.5 * 0.004 * 25
    assert float(optim.l2_penalty(PARAMS, options)) == pytest.approx(penalty)


def test_momentum_by_hand(options):
    options.momentum, options.weight_decay, options.schedule = 0.9, 0.0, "constant"
    velocity, value = 0.0, 1.0
    for params, _ in run(options, 3):
        velocity = 0.9 * velocity + 0.25
        value -= 0.1 * velocity
        assert params["conv1"]["kernel"][0] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_adam_by_hand(options, name, decay):
    """With one gradient all along, its moments cancel: every step is of the rate."""
    options.update(name=name, schedule="constant", weight_decay=decay, learning_rate=0.01)
    options.decay_params = ("*",)
    value = 1.0
    for params, _ in run(options, 3):
        value -= 0.01 * (1.0 + decay * value)
        assert params["conv1"]["kernel"][0] == pytest.approx(value, rel=1e-5)


def test_groups_move_at_their_own_rates_or_not_at_all(options):
    options.update(schedule="linear", learning_rate=1.0, weight_decay=0.0)
    options.groups = (
        {"params": "conv1/bias", "name": "frozen"},
        {"params": "*/bias", "learning_rate": 0.5},
        {"params": "local3/*", "epochs": 2.0, "learning_rate": 4.0},
    )
    moved = [jax.tree.map(lambda p, q: q - p, PARAMS, params) for params, _ in run(options, 4)]
    totals = [sum(1 - k / 10 for k in range(n + 1)) * 0.25 for n in range(4)]
    for n, (tree, total) in enumerate(zip(moved, totals, strict=True)):
        assert float(tree["conv1"]["bias"][0]) == 0
        assert float(tree["conv1"]["kernel"][0]) == pytest.approx(-total)
        assert float(tree["local3"]["bias"][0]) == pytest.approx(-0.5 * total)
        assert float(tree["local3"]["kernel"][0]) == pytest.approx(-4 * 0.25 * (1, 1.5)[n > 0])


def test_the_ema_stops_at_its_decay():
    moved = jax.tree.map(lambda p: p + 1, PARAMS)
    average = ema.update(PARAMS, moved, 1_000, 0.5)
    np.testing.assert_allclose(average["conv1"]["bias"], 0.5 + 0.5)


def test_an_ema_without_decay_is_the_variables():
    """Exactly: a - (a - v) is not v where the two differ in size."""
    start = jax.tree.map(lambda p: jnp.full_like(p, 1e8), PARAMS)
    average = ema.update(start, PARAMS, 1, 0.0)
    jax.tree.map(np.testing.assert_array_equal, average, PARAMS)


def test_lookahead_by_hand(options):
    """From step 2 of 10 on: every 3 steps the parameters return to an average of theirs."""
    options.ema_decay = 0.8
    options.lookahead.update(every=3, power=2.0, start=0.2)
    slow = fast = {"w": jnp.zeros(())}
    average, value = 0.0, 0.0
    for step in range(1, 11):
        fast = jax.tree.map(lambda x: x + 1, fast)
        value += 1
        slow, fast = ema.lookahead(slow, fast, jnp.int32(step), options, num_steps=10)
        if step <= 2:
            average = value
        elif step in (5, 8):
            decay = 0.8 * (step / 10) ** 2
            average = value = decay * average + (1 - decay) * value
        assert float(slow["w"]) == pytest.approx(average, rel=1e-6)
        assert float(fast["w"]) == pytest.approx(value, rel=1e-6)


def test_a_warmup_begins_at_its_factor(options):
    options.update(schedule="constant", warmup_epochs=4.0, warmup_factor=0.2, learning_rate=2.0)
    schedule = optim.make_schedule(options, steps_per_epoch=1.0, num_steps=10)
    found = [float(schedule(step)) for step in range(6)]
    assert found == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])


DEEP = {"block1": {"conv": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay_params": ("local33/kernel",)}, "'local33/kernel'. Did you mean 'local3/kernel'"),
        ({"groups": ({"params": "conv*/kernal"},)}, "groups.0. 'conv.*kernal'. Did you mean"),
        ({"groups": ({"params": "*", "nam": "sgd"},)}, "'nam'. Did you mean 'name'"),
        ({"groups": ({"params": "*", "name": "sdg"},)}, "'sdg'. Did you mean 'sgd'"),
        ({"groups": ({"name": "sgd"},)}, "expected a dict as"),
        ({"groups": ("*/bias",)}, "expected a dict as"),
        ({"groups": ({"params": "*", "momentum": 1.0},)}, "momentum = 1.0, expected a number"),
        ({"groups": ({"params": "*"}, {"params": "*/bias"})}, "no parameter: earlier groups"),
        ({"groups": ({"params": "*", "nesterov": True},)}, "nesterov is set without"),
        ({"betas": (0.9, 1.0)}, r"config.optim.betas = \(0.9, 1.0\), expected two numbers"),
        ({"groups": ({"params": "*", "betas": (0.9,)},)}, "expected two numbers from 0 to below 1"),
        ({"name": "muon"}, "conv1/kernel has the shape"),
    ],
)
def test_what_cannot_work_is_named(options, fields, message):
    options.update(fields)
    with pytest.raises(UsageError, match=message):
        optim.make_optimizer(options, 1.0, 10).init(PARAMS)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": ()}, "params is empty, expected patterns of paths as ('conv1/*', '*/bias')."),
        ({"params": 5}, "params = 5, expected patterns"),
        ({"params": ("*", 5)}, "params = ('*', 5), expected patterns"),
        ({"params": ""}, "params = '', expected patterns"),
        ({"name": 5}, "Unknown config.optim.groups[0].name '5'."),
        ({"nesterov": "no"}, "nesterov = 'no', expected True or False."),
        ({"decoupled_decay": 1}, "decoupled_decay = 1, expected True or False."),
        ({"fixed_norm": None}, "fixed_norm = None, expected True or False."),
        ({"muon_steps": 2.5}, "muon_steps = 2.5, expected a whole number from 1 on."),
        ({"muon_steps": 0}, "muon_steps = 0, expected a whole number"),
        ({"muon_steps": True}, "muon_steps = True, expected a whole number"),
        ({"betas": "ab"}, "betas = 'ab', expected two numbers from 0 to below 1."),
        ({"betas": 5}, "betas = 5, expected two numbers"),
        ({"betas": ("a", "b")}, "betas = ('a', 'b'), expected two numbers"),
        ({"learning_rate": np.inf}, "learning_rate = inf, expected a number from 0 on."),
        ({"learning_rate": None}, "learning_rate = None, expected a number"),
        ({"weight_decay": np.nan}, "weight_decay = nan, expected a number"),
        ({"weight_decay": True}, "weight_decay = True, expected a number"),
        ({"epochs": "3"}, "epochs = '3', expected a number"),
        ({"epochs": 3}, "epochs = 3 ends a schedule, and config.optim.schedule = 'exponential'"),
    ],
)
def test_every_field_of_a_group_has_a_type(options, group, message):
    options.groups = ({"params": "*", **group},)
    with pytest.raises(UsageError, match=re.escape(message)):
        optim.groups(options)


def test_nothing_else_of_a_frozen_group_is_read(options):
    rest = {"betas": [1], "epochs": "3", "momentum": 7, "muon_steps": 0, "learning_rate": 9.0}
    options.groups = ({"params": ["*/bias"], "name": "frozen", **rest},)
    ((moved, _),) = run(options, 1)
    assert float(moved["conv1"]["bias"][0]) == 0.5
    options.update(name="frozen", groups=({"params": "*/bias", **rest},))
    ((moved, _),) = run(options, 1)
    jax.tree.map(np.testing.assert_array_equal, moved, PARAMS)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("betas", ("0.9", "0.99"), "config.optim.betas = ('0.9', '0.99'), expected two numbers"),
        ("betas", (0.9,), "config.optim.betas = (0.9,), expected two numbers"),
        ("betas", 5, "config.optim.betas = 5, expected two numbers"),
        ("decay_params", (5,), "config.optim.decay_params = (5,), expected patterns of paths"),
        ("decay_params", (["*"],), "config.optim.decay_params = (['*'],), expected patterns"),
        ("decay_params", "*/bias", "config.optim.decay_params = '*/bias', expected patterns"),
    ],
)
def test_what_all_groups_inherit_has_a_type(options, field, value, message):
    options = ConfigDict({**options.to_dict(), field: value, "groups": ({"params": "*"},)})
    with pytest.raises(UsageError, match=re.escape(message)):
        optim.groups(options)


def test_patterns_of_the_decay_match_wherever_there_is_one(options):
    options.decay_params = ("local33/kernel",)
    options.groups = ({"params": "*", "weight_decay": 0.5},)  # of all that they could match
    with pytest.raises(UsageError, match="'local33/kernel'. Did you mean 'local3/kernel'"):
        optim.l2_penalty(PARAMS, options)
    options.weight_decay = 0.0  # as the default's patterns in another network
    assert float(optim.l2_penalty(DEEP, options)) == pytest.approx(0.5 * 0.5 * 12)
    options.update(weight_decay=0.1, decay_params=())
    assert float(optim.l2_penalty(DEEP, options)) == pytest.approx(0.5 * 0.5 * 12)


def test_a_pattern_reaches_any_depth(options):
    options.decay_params, options.weight_decay = ("*/kernel",), 0.2
    assert float(optim.l2_penalty(DEEP, options)) == pytest.approx(0.5 * 0.2 * 9)
    options.decay_params = ("block1/kernel",)
    with pytest.raises(UsageError, match="Did you mean 'block1/conv/kernel'"):
        optim.l2_penalty(DEEP, options)


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


def test_a_deep_network_is_not_listed_whole(options):
    layers = {f"layer{n:02}": {"kernel": jnp.ones(1)} for n in range(25)}
    options.decay_params = ("layer30/kernal",)
    with pytest.raises(UsageError, match=r"Did you mean .* layer19/kernel, and 5 more\.$"):
        optim.l2_penalty(layers, options)
