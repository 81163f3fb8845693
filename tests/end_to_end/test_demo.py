"""The demo in a browser, served or static: a picture gives the numbers of the Predictor."""

import base64
import functools
import http.server
import io
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax.data import splits
from cifar_jax.data.decode import decode
from cifar_jax.demo import static
from cifar_jax.predict import export, heat_map
from cifar_jax.predict.predictor import restore
from tests.conftest import ROOT

FORMS = ["server", "static"]


@pytest.fixture(scope="module")
def folder(short_run, tmp_path_factory):
    """The static page, and an exported network."""
    pytest.importorskip("jax2onnx")
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here: apt-get install npm")
    folder = tmp_path_factory.mktemp("static")
    static.write(restore(short_run), folder)
    export.run(short_run, folder / "exported.onnx")
    return folder


@pytest.fixture(scope="module")
def host(folder):
    """The address of a web server that has the static page, and what was asked of it."""

    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(short_run):
    """The address of a demo in a process of its own."""
    command = [sys.executable, "-m", "cifar_jax.demo", str(short_run), "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" ")[0]
        process.terminate()


@pytest.fixture
def address(request):
    """Of the form that the test is for."""
    if request.param == "server":
        return request.getfixturevalue("server")
    return request.getfixturevalue("host")[0]


@pytest.fixture(scope="module")
def picture(short_run, tmp_path_factory, data_dir):
    from cifar_jax.workdir import description

    images = splits.load(description.load(short_run).data, "test", 0).images
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.fromarray(images[0]).resize((320, 240)).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("address", FORMS, indirect=True)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_a_picture_gives_the_predictors_numbers(
    browser, address, picture, short_run, theme, width, request
):
    form = request.node.callspec.params["address"]
    page = browser(address, f"demo-{form}-{theme}-{width}", color_scheme=theme)
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
@pytest.mark.parametrize("address", FORMS, indirect=True)
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
@pytest.mark.parametrize("address", FORMS, indirect=True)
def test_what_is_no_picture_is_said(chromium, address, tmp_path):
    page = chromium.new_page()  # the browser counts the refusal among its errors
    page.goto(address)
    (tmp_path / "text.png").write_text("<html>")
    page.set_input_files("#file", tmp_path / "text.png")
    page.get_by_text("That cannot be read").wait_for()
    assert page.is_hidden("#result")
    page.close()


PICTURES = {  # mode, width and height: either way out of shape, small, large, the size itself
    "wide": ("RGB", 333, 217),
    "high": ("RGB", 70, 100),
    "small": ("RGB", 9, 20),
    "grey": ("L", 50, 40),
    "see-through": ("LA", 64, 64),
    "itself": ("RGB", 32, 32),
}


@pytest.mark.slow
def test_the_static_page_decodes_and_looks_as_python_does(
    browser, host, folder, short_run, tmp_path
):
    address, asked = host
    asked.clear()
    page = browser(address, "demo-static-decoded")
    facts = export.metadata(restore(short_run), True) | {"seen_shape": [24, 24, 3]}
    classify = """async ([facts, data]) => {
        const {load} = await import("./classifier.mjs");
        const {buffer} = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        return (await load(facts, 10))(new Blob([buffer]));
    }"""
    predictor = cifar_jax.load(short_run)
    rng = np.random.default_rng(0)
    for name, (mode, width, height) in PICTURES.items():
        shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
        pixels = rng.integers(0, 256, shape, np.uint8)
        if mode == "LA":
            pixels[..., 1] = 255 * (pixels[..., 1] > 99)  # between, a browser's canvas rounds
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels, mode).save(path)
        data = base64.b64encode(path.read_bytes()).decode()
        found = page.evaluate(classify, [facts, data])
        expected = predictor.classify(path)
        assert [each["name"] for each in found["classes"]] == [name for name, _ in expected]
        np.testing.assert_allclose(
            [each["probability"] for each in found["classes"]],
            [probability for _, probability in expected],
            atol=1e-5,
        )
        wanted = heat_map.pictures_of(*predictor.look(decode(path, predictor.image_shape)))
        for kind, picture in zip(("seen", "heat"), wanted, strict=True):
            file = io.BytesIO(base64.b64decode(found[kind].partition(",")[2]))
            drawn = np.asarray(Image.open(file).convert("RGB"))
            assert np.abs(drawn.astype(int) - picture).max() <= 1, (name, kind)
    assert {path.partition("?")[0] for path in asked} <= {
        f"/{p.name}" for p in folder.iterdir()
    } | {"/"}


@pytest.mark.slow
def test_an_exported_network_runs_in_a_browser(browser, host, short_run):
    """By the lines of docs/export.md."""
    (script,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    page = browser(host[0], "demo-static-exported")
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    script = (
        script.replace("model.onnx", "exported.onnx")
        .replace("import * as ort from", "const ort = await import(")
        .replace('mjs";', 'mjs");')
    )
    code = f"""async (data) => {{
        const pixels = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), count = 256;
        {script}
        return [...probabilities.data];
    }}"""
    found = page.evaluate(code, base64.b64encode(images.tobytes()).decode())
    expected = cifar_jax.load(short_run)(images)
    np.testing.assert_allclose(np.reshape(found, expected.shape), expected, atol=1e-5)
