"""What the tests share: a tiny dataset in the native layout, its config, compiled steps."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.devices import runtime

runtime.start()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it

import jax  # noqa: E402  (after the runtime)
import jax.numpy as jnp  # noqa: E402

from cifar_jax import config as config_lib  # noqa: E402
from cifar_jax.data import native  # noqa: E402
from cifar_jax.data.dataset import Description  # noqa: E402
from cifar_jax.devices import replicas  # noqa: E402
from cifar_jax.loop import training  # noqa: E402
from cifar_jax.ops import native as native_ops  # noqa: E402

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
NUM_TRAIN, NUM_TEST = 90, 37  # neither a multiple of a batch
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DATASET = Description("cifar10", NAMES, (32, 32, 3), {"train": 90}, (127.5,) * 3, (73.9,) * 3)


def random_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count, np.uint8)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """One compilation for all tests and the processes they start."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    native_ops.reason("float32")  # compiled here, not in a process whose output is compared


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """90 training and 37 test images of noise, in CIFAR-10's files."""
    folder = tmp_path_factory.mktemp("data")
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    images, labels = random_images(NUM_TRAIN, seed=0)
    for n in range(5):
        part = slice(n * 18, (n + 1) * 18)
        native.write(batches / f"data_batch_{n + 1}.bin", images[part], labels[part])
    native.write(batches / "test_batch.bin", *random_images(NUM_TEST, seed=1))
    (batches / "batches.meta.txt").write_text("\n".join(NAMES) + "\n")
    return folder


@pytest.fixture
def default():
    return config_lib.recipe("default")


@pytest.fixture
def config(default, data_dir):
    """The default config on the tiny dataset: 6 steps of 16."""
    default.data.dir = str(data_dir)
    default.batch_size = 16
    default.num_steps = 6
    default.log_every_steps = 2
    default.checkpoint.every_steps = 3
    default.summaries.update(scalars=0, images=0, histograms=0)  # one program to compile
    default.eval.batch_size = 16
    default.eval.poll_seconds = 0.05
    return default


@pytest.fixture
def by_xla(monkeypatch):
    """Operations on CPUs as they are where the extra `onednn` is not installed."""
    monkeypatch.setattr(native_ops, "wanted", lambda x: False)


@pytest.fixture(scope="session")
def compiled_step():
    """Binds and compiles `steps.train_step` for a config: (first state, step) of 16 images."""

    def build(config, devices: int = 1, detail: int = 0):
        config.num_devices = devices
        run = training.prepare(config)

        def step(state, batch):
            zeros = jnp.zeros(len(batch["label"]), jnp.int32)
            return run.step(state, {"index": zeros, "epoch": zeros, **batch}, detail=detail)

        return replicas.replicate(run.state, run.mesh), jax.jit(step)

    return build


@pytest.fixture(scope="session")
def chromium():
    """Chromium from the distribution's packages, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as running:
        # Its sandbox needs rights that containers do not have; the pages are our own.
        yield running.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def browser(chromium):
    """Opens an address; the page must come without an error and leaves a screenshot behind."""
    opened = []

    def open_page(address, name, **options):
        page = chromium.new_page(viewport={"width": 1280, "height": 900}, **options)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.goto(address)
        opened.append((page, name, errors))
        return page

    yield open_page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for page, name, _ in opened:
        page.screenshot(path=SCREENSHOTS / f"{name}.png")
        page.close()
    assert [errors for *_, errors in opened if errors] == []
