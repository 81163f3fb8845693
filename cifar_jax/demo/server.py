"""The page's server, for this machine alone. It answers with what the network made of a picture."""

import http.server
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np

from cifar_jax.data.decode import Unreadable, decode
from cifar_jax.demo import page
from cifar_jax.demo.page import MAX_BYTES, SHOWN
from cifar_jax.errors import UserError, reason
from cifar_jax.predict import heat_map
from cifar_jax.predict.predictor import Predictor
from cifar_jax.telemetry.pictures import data_url

_HOST = "127.0.0.1"
_POLICY = (  # the page has all within it, and asks this server alone
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)


class Server(http.server.ThreadingHTTPServer):
    """Bound to the loopback interface; `port` 0 is any that is free. Raises UserError where it is
    taken."""

    daemon_threads = True

    def __init__(self, predictor: Predictor, port: int):
        self.predictor = predictor
        self.page = page.render(
            {
                "class_names": predictor.class_names,
                "image_shape": predictor.image_shape,
                "step": predictor.step,
            }
        )
        try:
            super().__init__((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"Port {port}: {reason(error)}. Choose another with --port.") from error
        blank = np.zeros(predictor.image_shape, np.uint8)
        predictor(blank[None])  # compiles, for the first picture not to wait
        predictor.look(blank)

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.server_port}/"


def answer(predictor: Predictor, content: bytes) -> dict[str, Any]:
    """Of a picture's file: the classes with their probabilities, the most probable first, what the
    network saw and where it looked as data: URLs, and the milliseconds of decoding and network.

    Raises Unreadable for what is no picture.
    """
    start = time.perf_counter()
    image = decode(content, predictor.image_shape)
    (probabilities,) = predictor(image[None])
    milliseconds = 1e3 * (time.perf_counter() - start)
    seen, overlay = heat_map.pictures_of(*predictor.look(image))
    classes = predictor.ranked(probabilities)[:SHOWN]
    return {
        "classes": [{"name": name, "probability": p} for name, p in classes],
        "seen": data_url(seen),
        "heat": data_url(overlay),
        "milliseconds": round(milliseconds, 1),
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "cifar_jax", ""
    timeout = 30  # seconds, for a client that has stopped sending

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def _guarded(self, respond: Callable[[], None]) -> None:
        # Under another name, a page from elsewhere would speak to this server as its own.
        host = (self.headers["Host"] or "").rpartition(":")[0]
        if host not in (_HOST, "localhost"):
            self._problem(HTTPStatus.FORBIDDEN, "This page is for this machine alone.")
        else:
            respond()

    def _get(self) -> None:
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._problem(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _post(self) -> None:
        length = self.headers["Content-Length"] or ""
        if self.path != "/classify" or not length.isdecimal():
            self._problem(HTTPStatus.NOT_FOUND, "There is nothing here.")
        elif int(length[:20]) > MAX_BYTES:
            limit = f"The file is larger than {MAX_BYTES >> 20} MiB. Choose a smaller one."
            self._problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, limit)
        else:
            try:
                found = answer(self.server.predictor, self.rfile.read(int(length)))
            except Unreadable as error:
                text = f"That cannot be read: {reason(error)}."
                self._problem(HTTPStatus.UNPROCESSABLE_ENTITY, text)
            else:
                self._send(HTTPStatus.OK, "application/json", json.dumps(found).encode())

    def _problem(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # what was sent may not have been read
        self._send(status, "application/json", json.dumps({"problem": text}).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the page says what happened."""
