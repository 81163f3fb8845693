"""The demo's server: what it answers, to whom, and what it refuses."""

import base64
import http.client
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from cifar_jax import config as config_lib
from cifar_jax import inputs, steps
from cifar_jax.data.dataset import Description
from cifar_jax.demo import __main__ as program
from cifar_jax.demo import server, static
from cifar_jax.errors import UserError
from cifar_jax.predict.predictor import Predictor, Trained
from tests.conftest import NAMES


@pytest.fixture(scope="module")
def predictor():
    """As bright a picture, as probable the first class."""
    dataset = Description("drawn", ("<b>", *NAMES[1:]), (8, 8, 3), {"train": 1}, (0.0,), (1.0,))

    def predict(seen):
        return seen.mean((1, 2, 3))[:, None] * np.eye(10)[:1]

    return Predictor(dataset, lambda images: images / 255.0 * 2 - 1, predict, step=7)


@pytest.fixture(scope="module")
def trained():
    """What a workdir holds, but for the parameters."""
    names = ("<b>", *NAMES[1:])
    dataset = Description("drawn", names, (32, 32, 3), {"train": 1}, (0.0,) * 3, (1.0,) * 3)
    config = config_lib.recipe("default")
    moments = dataset.mean, dataset.std
    made = inputs.make(config.inputs, dataset.image_shape, *moments, config.seed)
    return Trained(config, dataset, 7, steps.make_model(config, 10), made, {})


@pytest.fixture(scope="module")
def running(predictor):
    with server.Server(predictor, 0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def ask(running):
    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", running.server_port, timeout=10)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    return ask


def png(level=200, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(file, "PNG")
    return file.getvalue()


def test_the_page_has_all_within_it(ask):
    response, page = ask("GET", "/")
    assert response.status == 200
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    text = page.decode()
    assert "http" not in text
    assert "10 classes, pictures of 8x8, step 7" in text


def test_an_answer_is_the_predictors(ask, predictor):
    response, content = ask("POST", "/classify", png())
    found = json.loads(content)
    assert response.headers["Content-Type"] == "application/json"
    classes = [(each["name"], each["probability"]) for each in found["classes"]]
    assert classes == predictor.classify(png())
    assert found["milliseconds"] > 0
    for name in ("seen", "heat"):
        data = base64.b64decode(found[name].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(data)).size == (8, 8)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "problem"),
    [
        ("POST", "/classify", b"<html>", {}, 422, "That cannot be read: it is not a picture"),
        ("POST", "/classify", png()[:40], {}, 422, "That cannot be read"),
        ("POST", "/classify", b"", {}, 422, "That cannot be read"),
        ("POST", "/classify", b"x", {"Content-Length": "99999999999999999999999"}, 413, "larger"),
        ("POST", "/classify", b"", {"Content-Length": "-1"}, 404, "nothing here"),
        ("POST", "/other", png(), {}, 404, "nothing here"),
        ("GET", "/../../etc/passwd", None, {}, 404, "nothing here"),
        ("GET", "/", None, {"Host": "example.org"}, 403, "for this machine alone"),
        ("POST", "/classify", png(), {"Host": "example.org:80"}, 403, "for this machine alone"),
    ],
)
def test_bad_requests_are_answered_in_a_line(ask, method, path, body, headers, status, problem):
    response, content = ask(method, path, body, **headers)
    assert response.status == status
    found = json.loads(content)["problem"]
    assert problem in found
    assert "/" not in found  # no path of this machine


def test_a_picture_with_too_many_pixels_is_not_decoded(ask):
    file = io.BytesIO()
    Image.new("1", (1 << 14, 1 << 13)).save(file, "PNG")
    response, content = ask("POST", "/classify", file.getvalue())
    assert response.status == 422
    assert "expected at most 67,108,864" in json.loads(content)["problem"]


def test_a_port_in_use_is_named(running, predictor):
    with pytest.raises(
        UserError, match=f"Port {running.server_port}: .*Choose another with --port"
    ):
        server.Server(predictor, running.server_port)
    with pytest.raises(UserError, match="Port 70000"):
        server.Server(predictor, 70_000)


def test_what_cannot_be_served_is_said(tmp_path, capsys):
    assert program.main([str(tmp_path)]) == 1
    assert "nothing was trained there" in capsys.readouterr().err
    assert program.main([str(tmp_path), "--step=first"]) == 2
    assert "expected the step of a checkpoint" in capsys.readouterr().err


@pytest.fixture
def runtime(tmp_path):
    """A folder like that of the package onnxruntime-web."""
    (tmp_path / "dist").mkdir()
    for name in static._RUNTIME:
        (tmp_path / "dist" / name).write_bytes(name.encode())
    return tmp_path


def test_a_static_page_has_its_network_beside_it(trained, runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(static.export, "to_onnx", lambda *_: b"network")
    folder = static.write(trained, tmp_path / "a" / "page", runtime)
    names = {"index.html", "classifier.mjs", "model.onnx", *static._RUNTIME}
    assert {path.name for path in folder.iterdir()} == names
    page = (folder / "index.html").read_text()
    assert "Content-Security-Policy" in page and "://" not in page
    assert '"seen_shape": [24, 24, 3]' in page
    assert "\\u003cb\\u003e" in page and "<b>" not in page  # a class's name is no markup
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file"):
        static.write(trained, tmp_path / "file" / "page", runtime)


def npm(tmp_path, monkeypatch, script):
    """An npm that does what `script` says."""
    (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo >&2 first; echo >&2 'no network'; exit 1", "npm cannot download .*: no network"),
        ("exit 1", "npm cannot download .*: it says nothing"),
        ("echo other > a.tgz", "another SHA-256 than expected"),
    ],
)
def test_what_npm_does_not_give_is_said(trained, tmp_path, monkeypatch, script, problem):
    npm(tmp_path, monkeypatch, script)
    with pytest.raises(UserError, match=problem):
        static.write(trained, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_without_npm_the_package_may_be_named(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="of npm, which is not installed here"):
        static.write(trained, tmp_path / "page")
    with pytest.raises(UserError, match="expected the folder of onnxruntime-web@"):
        static.write(trained, tmp_path / "page", tmp_path)
