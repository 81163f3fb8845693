"""A browser without a window, for the pages that the project makes."""

import shutil

import pytest

from tests.conftest import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"


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
