"""The demo in a browser: a picture gives the numbers of the Predictor."""

import subprocess
import sys

import pytest
from PIL import Image

import cifar_jax
from cifar_jax.data import splits
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def address(short_run):
    """Of a demo in a process of its own."""
    command = [sys.executable, "-m", "cifar_jax.demo", str(short_run), "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" ")[0]
        process.terminate()


@pytest.fixture(scope="module")
def picture(short_run, tmp_path_factory, data_dir):
    from cifar_jax.workdir import description

    images = splits.load(description.load(short_run).data, "test", 0).images
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.fromarray(images[0]).resize((320, 240)).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_a_picture_gives_the_predictors_numbers(browser, address, picture, short_run, theme, width):
    page = browser(address, f"demo-{theme}-{width}", color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    page.set_input_files("#file", picture)
    page.wait_for_selector("#result:not([hidden])")
    rows = [row.inner_text().split("\t") for row in page.query_selector_all("#classes tr")]
    expected = cifar_jax.load(short_run).classify(picture)
    assert [row[0].strip() for row in rows] == [name for name, _ in expected]
    assert [row[-1].strip() for row in rows] == [f"{100 * p:.1f}%" for _, p in expected]
    assert page.inner_text("#summary").startswith(f"{expected[0][0]}, ")
    for name in ("given", "seen", "heat"):
        assert page.evaluate(f"document.getElementById('{name}').naturalWidth") > 0
        assert page.get_attribute(f"#{name}", "alt")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("window.scrollTo(0, 0)")


@pytest.mark.slow
def test_a_dropped_file_and_one_that_is_no_picture(browser, address, picture):
    page = browser(address, "demo-dropped")
    drop = """([name, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name));
        document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
    }"""
    page.evaluate(drop, ["one.png", list(picture.read_bytes())])
    page.wait_for_selector("#result:not([hidden])")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"


@pytest.mark.slow
def test_what_is_no_picture_is_said(chromium, address, tmp_path):
    page = chromium.new_page()  # the browser counts the refusal among its errors
    page.goto(address)
    (tmp_path / "text.png").write_text("<html>")
    page.set_input_files("#file", tmp_path / "text.png")
    page.wait_for_function("document.getElementById('problem').textContent !== ''")
    assert "That cannot be read" in page.inner_text("#problem")
    assert page.is_hidden("#result")
    page.close()
