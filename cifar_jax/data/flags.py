"""The command lines of this room's programs, whose flags are fields of config.data."""

import argparse
import runpy
from collections.abc import Callable
from typing import Any, NoReturn

from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Shows a module's docstring as its help, and raises UsageError in place of leaving."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(
            prog=f"python -m {prog}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}. --help names the flags.")


def defaults() -> ConfigDict:
    """config.data of configs/default.py, without the packages that a whole config is checked by."""
    found: ConfigDict = runpy.run_path(str(files.RECIPES / "default.py"))["get_config"]().data
    return found


def reader(default: Any) -> Callable[[str], Any]:
    """What reads the text of a flag; `32,32` is a tuple."""
    if isinstance(default, bool):
        return switch
    return numbers if isinstance(default, tuple) else type(default)


def switch(text: str) -> bool:
    """As in `True`. Raises ValueError."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def numbers(text: str) -> tuple[int, ...]:
    """As in `32,32`, with brackets or without. Raises ValueError."""
    return tuple(int(part) for part in text.strip("()").split(","))
