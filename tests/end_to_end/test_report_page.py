"""The report of a real run, and what a browser makes of it."""

import pytest

from cifar_jax.report import page as report_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(short_run):
    return report_page.make([short_run])


def test_nothing_is_left_out_of_a_whole_run(page):
    found = {path.stem for path in page.parent.glob("*.png")}
    assert found == {
        *("loss", "accuracy", "accuracy-time", "learning-rate", "gradient-norm", "update-ratio"),
        *("sparsity", "confusion", "classes", "reliability", "model"),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_browser_shows_every_picture(page, browser, scheme):
    shown = browser(page.as_uri(), f"report_{scheme}", color_scheme=scheme)
    sizes = shown.evaluate(
        "[...document.images].filter(i => i.checkVisibility()).map(i => i.naturalWidth)"
    )
    assert len(sizes) > 20
    assert min(sizes) > 0
    assert shown.evaluate("performance.getEntriesByType('resource').length") == len(
        shown.evaluate(
            "performance.getEntriesByType('resource').filter(r => /^data:/.test(r.name))"
        )
    )
    colour = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) < 384
    assert dark is (scheme == "dark")
