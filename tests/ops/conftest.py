"""What the tests of operations share: both of their fast forms on CPUs."""

import pytest

from cifar_jax.ops import native


@pytest.fixture(params=["xla", "native"])
def each_form(request):
    """By XLA, and by `native`."""
    if request.param == "xla":
        request.getfixturevalue("by_xla")
    elif not native.usable("float32"):
        pytest.skip(native.reason("float32"))
