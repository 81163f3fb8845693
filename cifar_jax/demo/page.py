"""The page to drop a picture on, in its two forms: with a server that answers, or static."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

MAX_BYTES = 1 << 25  # of a picture's file
SHOWN = 10  # classes


def render(facts: Mapping[str, Any], static: bool = False) -> bytes:
    """HTML. `facts` are the network's "class_names", "image_shape" and "step"; those of a static
    page have "seen_shape", too, the shape of what the network sees, and go to its classifier."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(facts=facts, static=static, shown=SHOWN, most=MAX_BYTES).encode()
