"""The table of layers against the tutorial's numbers."""

import jax
from flax import linen as nn

from cifar_jax import models
from cifar_jax.models import overview
from cifar_jax.models.cnn import CNN
from cifar_jax.models.resnet import ResNet18

KEY = jax.random.key(0)


def test_layers_in_their_order_with_their_costs():
    rows = {row.name: row for row in overview.layers(CNN(), (24, 24, 3))}
    assert list(rows) == [
        *("conv1", "pool1", "norm1", "conv2", "norm2", "pool2"),
        *("local3", "local4", "softmax_linear"),
    ]
    assert rows["conv2"] == ("conv2", (12, 12, 64), 5 * 5 * 64 * 64 + 64, 12 * 12 * 5 * 5 * 64 * 64)
    assert rows["pool2"] == ("pool2", (6, 6, 64), 0, 0)
    assert rows["local3"].multiply_adds == 6 * 6 * 64 * 384
    assert sum(row.parameters for row in rows.values()) == 1_068_298


def test_the_table_is_markdown_and_aligned():
    rows = [overview.LayerRow("a", (2, 3), 10, 300), overview.LayerRow("long", (4,), 30, 100)]
    lines = overview.markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("a", "2×3", "10", "25.0%", "300", "75.0%"),
    ]
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == [
        "total",
        "",
        "40",
        "",
        "400",
        "",
    ]


class Silent(nn.Module):
    """Publishes nothing, and has a parameter that belongs to no layer."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = x + self.param("offset", nn.initializers.zeros, x.shape[-1:])
        x = Inner(name="inner")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(6, (3, 3), strides=2, name="conv")(x)


def test_modules_that_publish_nothing_have_rows_of_their_own():
    assert overview.layers(Silent(), (8, 4, 5)) == [
        ("inner/conv", (4, 2, 6), 9 * 5 * 6 + 6, 4 * 2 * 9 * 5 * 6),
        ("head", (3,), 6 * 3 + 3, 6 * 3),
        ("offset", (), 5, 0),
    ]


def test_layers_at_any_depth():
    rows = {row.name: row for row in overview.layers(ResNet18(width=4), (9, 8, 1))}
    assert list(rows)[:4] == ["conv1", "norm1", "relu1", "group1/block1/conv1"]
    assert list(rows)[-3:] == ["group4/block2/relu2", "pool", "linear"]
    projection = rows["group2/block1/projection"]
    assert projection == ("group2/block1/projection", (5, 4, 8), 4 * 8, 5 * 4 * 4 * 8)
    assert rows["group2/block1/projection_norm"][1:] == ((5, 4, 8), 16, 0)
    variables = jax.eval_shape(lambda k: models.init(ResNet18(width=4), k, (9, 8, 1)), KEY)
    assert sum(row.parameters for row in rows.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(variables["params"])
    )
