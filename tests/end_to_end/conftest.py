"""A short run with everything in it, and a browser without a window to look at it."""

import contextlib
import shutil

import pytest

from cifar_jax import config as config_lib
from cifar_jax import train
from cifar_jax.evaluate import Evaluator
from tests.conftest import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"


@pytest.fixture(scope="session")
def short_run(tmp_path_factory, data_dir):
    """The workdir of six steps with two evaluations, all summaries at every third step."""
    config = config_lib.recipe("default")
    config.data.dir = str(data_dir)
    config.update(batch_size=16, num_steps=6)
    config.summaries.update(scalars=1, images=3, histograms=3)
    config.checkpoint.every_steps = 3
    folder = tmp_path_factory.mktemp("short") / "run"
    with contextlib.closing(Evaluator(config, folder)) as evaluator:
        train.train(config, folder, after_checkpoint=evaluator.evaluate)
    return folder


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
