"""The operations of kernels.cc against plain ones in float32, of the same inputs, and what is said
where they cannot be had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cifar_jax import models
from cifar_jax.models.batch_norm import BatchNorm
from cifar_jax.ops import native
from cifar_jax.ops.conv import conv, conv_plain, product
from cifar_jax.ops.lrn import lrn_plain, relu_lrn
from cifar_jax.ops.max_pool import max_pool, max_pool_blocks
from cifar_jax.ops.norm_gelu import bias_gelu


def needs(dtype):
    return pytest.mark.skipif(not native.usable(dtype), reason=native.reason(dtype) or "")


usable = needs("bfloat16")
of_both = pytest.mark.parametrize(
    "dtype", [pytest.param(dtype, marks=needs(dtype)) for dtype in ("bfloat16", "float32")]
)
HALF, SINGLE = 4e-3, 1e-5  # bfloat16: the distance of two numbers


def draw(seed, shape, dtype="bfloat16"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def assert_close(found, expected, allowed):
    assert found.shape == expected.shape
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)
    assert error <= allowed, error


def agree(function, reference, x, *params, single=SINGLE):
    """Values, and gradients of x to its dtype's precision and of float32 params to float32's."""
    y, pull = jax.vjp(function, x, *params)
    expected, pull_reference = jax.vjp(reference, *wide((x, *params)))
    assert y.dtype == x.dtype
    allowed = single if x.dtype == jnp.float32 else HALF
    assert_close(y, expected, allowed)
    dy = draw(9, y.shape, x.dtype)
    gradients, references = pull(dy), pull_reference(dy.astype(jnp.float32))
    assert gradients[0].dtype == x.dtype
    assert_close(gradients[0], references[0], allowed)
    for gradient, wanted in zip(gradients[1:], references[1:], strict=True):
        assert gradient.dtype == jnp.float32
        assert_close(gradient, wanted, single)


def rounded(kernel, dtype):
    """The kernel as it is multiplied with; its gradient is that of the unrounded one."""
    return kernel + lax.stop_gradient(kernel.astype(dtype).astype(jnp.float32) - kernel)


@of_both
@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [
        ((2, 12, 12, 64), (5, 5, 64, 64), "SAME"),
        ((3, 7, 9, 16), (3, 3, 16, 48), "SAME"),
        ((2, 8, 8, 5), (1, 1, 5, 3), "SAME"),
        ((2, 9, 8, 3), (2, 2, 3, 24), "VALID"),
        ((2, 6, 7, 4), (4, 2, 4, 3), "SAME"),  # one more zero after than before
    ],
)
def test_a_convolution(size, kernel, padding, dtype):
    agree(
        lambda x, k: conv(x, k, padding),
        lambda x, k: conv_plain(x, rounded(k, dtype), padding),
        draw(0, size, dtype),
        draw(1, kernel, "float32"),
    )


@of_both
def test_a_product(dtype):
    agree(
        product,
        lambda x, k: x @ rounded(k, dtype),
        draw(0, (6, 50), dtype),
        draw(1, (50, 7), "float32"),
    )


@of_both
@pytest.mark.parametrize("channels", [64, 24, 5])
def test_bias_relu_and_lrn(channels, dtype):
    x, bias = draw(0, (2, 3, 5, channels), dtype), draw(1, (channels,), "float32")
    agree(relu_lrn, lambda x, b: lrn_plain(jnp.maximum(x + b, 0)), 30 * x, bias)


@of_both
@pytest.mark.parametrize("shape", [(4, 3, 3, 24), (3, 3, 3, 24), (2, 2, 2, 64), (5, 1, 1, 7)])
def test_bias_and_gelu(shape, dtype):
    def reference(x, bias):
        return jax.nn.gelu(x + bias, approximate=False)

    agree(bias_gelu, reference, 3 * draw(0, shape, dtype), draw(1, shape[-1:], "float32"))


def normalised(module, variables, x, train):
    return module.apply(variables, x, train=train, mutable=["batch_stats"])


@of_both
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("offset", [0, 100])  # whose square dwarfs the variance
def test_batch_normalisation_and_gelu(train, offset, dtype):
    x = draw(0, (8, 5, 5, 24), dtype) + jnp.asarray(offset, dtype)
    module = BatchNorm(use_scale=False, gelu=True)
    variables = module.init(jax.random.key(0), x, train=False)
    stats = {"mean": draw(2, (24,), "float32") + offset, "var": draw(3, (24,), "float32") ** 2 + 1}
    bias = draw(1, (24,), "float32")

    def apply(x, bias):
        return normalised(module, {"params": {"bias": bias}, "batch_stats": stats}, x, train)

    def by_xla(x, bias):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "wanted", lambda x: False)
            return apply(x, bias)

    single = 1e-4 if offset else SINGLE  # as exact as XLA's mean of such values
    functions = (lambda *args: apply(*args)[0]), (lambda *args: by_xla(*args)[0])
    agree(*functions, x, bias, single=single)
    assert variables["params"].keys() == {"bias"}
    (_, found), (_, expected) = apply(x, bias), by_xla(wide(x), bias)
    for name in stats:
        assert_close(found["batch_stats"][name], expected["batch_stats"][name], single)


@usable
def test_what_is_not_a_number_stays_none():
    x = draw(0, (2, 8, 8, 16)).at[0, 3, 3, 5].set(jnp.nan)
    zero = jnp.zeros(16)
    for y in (max_pool(x), max_pool_blocks(x, 2), relu_lrn(x, zero), bias_gelu(x, zero)):
        assert jnp.isnan(y[0]).any() and not jnp.isnan(y[1]).any()


@of_both
@pytest.mark.parametrize("name", ["cnn", "airbench"])
def test_a_network_is_made_of_them(name, dtype):
    """In the compiled gradient there is no convolution and no pooling of XLA's."""
    model = models.create(name, 10, dtype)
    images = draw(0, (2, 24, 24, 3), "float32")
    variables = models.init(model, jax.random.key(0), (24, 24, 3))

    def loss(params):
        state = {**variables, "params": params}
        return models.forward(model, state, images, train=True)[0].sum()

    text = jax.jit(jax.grad(loss)).lower(variables["params"]).as_text()
    assert "cifar_jax_conv_backward_kernel" in text
    assert "stablehlo.convolution" not in text and "reduce_window" not in text


@usable
@pytest.mark.parametrize("threads", [1, 3])
def test_sums_do_not_depend_on_the_threads(threads):
    import ctypes

    openmp = ctypes.CDLL("libgomp.so.1")
    x, bias = draw(0, (64, 4, 4, 16)), draw(1, (16,), "float32")

    def results():
        y, pull = jax.vjp(jax.jit(bias_gelu), x, bias)
        return (y, *pull(y))

    expected, before = results(), openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(threads)
    try:
        for found, wanted in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    finally:
        openmp.omp_set_num_threads(before)


# -- where it cannot be had --


@pytest.fixture
def asked():
    """Asks anew."""
    return native._load.__wrapped__


def test_a_cpu_without_the_instructions(monkeypatch):
    monkeypatch.setattr(native, "_cpu_flags", lambda: {"avx2"})
    assert "no instructions for bfloat16" in native.reason("bfloat16")
    assert "no instructions" not in (native.reason("float32") or "")


def test_without_onednn(asked, monkeypatch):
    def missing(name):
        raise native.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(native.importlib.metadata, "files", missing)
    assert "pip install 'cifar_jax[onednn]'" in asked()


@pytest.fixture
def onednn(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_onednn", lambda: (tmp_path, tmp_path / "libdnnl.so.3"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_a_compiler(asked, onednn, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert asked() == "no C++ compiler is installed (c++, g++ or $CXX)"


def test_a_compiler_that_fails_leaves_nothing(asked, onednn, monkeypatch, tmp_path, capfd):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\necho noise >&2\necho 'x.cc:1: error: no such header' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert asked() == f"{compiler} failed: x.cc:1: error: no such header"
    assert list((tmp_path / ".cache/cifar_jax/native").iterdir()) == []
    assert "once" in capfd.readouterr().err


def test_without_it_a_network_computes_in_float32(monkeypatch):
    monkeypatch.setattr(native, "reason", lambda dtype: "there is no oneDNN")
    assert models.dtype_here("bfloat16") == "float32"
    assert models.create("cnn", 10, "bfloat16").dtype == "float32"
    assert not native.wanted(draw(0, (2, 2)))
    assert not native.wanted(draw(0, (2, 2), "float32"))
    assert models.dtype_here("float32") == "float32"
