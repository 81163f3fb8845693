"""The table of layers against the tutorial's numbers."""

from cifar_jax.models import overview
from cifar_jax.models.cnn import CNN


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
