"""The page to drop a picture on, in its two forms: with a server that answers, or static."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax import files

MAX_BYTES = 1 << 25  # of a picture's file
SHOWN = 10  # classes


def render(facts: Mapping[str, Any], static: bool = False) -> bytes:
    """HTML. `facts` are the network's "class_names", "image_shape" and "step"; those of a static
    page have "seen_shape", too, the shape of what the network sees, and go to its classifier."""
    template = files.template(Path(__file__).with_name("page.html.j2"))
    return template.render(facts=facts, static=static, shown=SHOWN, most=MAX_BYTES).encode()
