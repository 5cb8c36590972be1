"""What compiled code says of itself: the code in it, and the names that it mentions. Nothing is run."""

from __future__ import annotations

import types
from collections.abc import Iterator


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code itself, then that of the functions, classes and comprehensions in it, at any depth."""
    waiting = [code]
    while waiting:
        each = waiting.pop()
        waiting += [constant for constant in each.co_consts if isinstance(constant, types.CodeType)]
        yield each


def names_of(code: types.CodeType) -> set[str]:
    """Names outside itself and attributes that code mentions, also in the code in it."""
    return {name for each in codes_in(code) for name in each.co_names}
