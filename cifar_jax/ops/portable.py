"""Operations in their plain forms, for programs that run elsewhere: without a choice by platform,
and for a batch of any size."""

import contextlib
import contextvars
from collections.abc import Iterator

_wanted = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def operations() -> Iterator[None]:
    """What is traced within has the plain forms."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> bool:
    """Whether they are asked for; operations with two forms look at it."""
    return _wanted.get()
