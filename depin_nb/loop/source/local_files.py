"""Whether a dataset reads files of this machine when a sample is fetched: it pickles small, and is of no use where the files aren't."""

from __future__ import annotations

import os
import types
from typing import Any

import numpy as np

from ..find.codes import names_of
from .recipe import leaves_of

_MOST_PATH = 4096  # characters: PATH_MAX of Linux
_DEEPEST = 4


def file_read(dataset: Any) -> str:
    """The attribute of a dataset (or of one inside it) that holds an existing path and that its `__getitem__` reads; "" if none does."""
    for leaf in leaves_of(dataset):
        held = getattr(leaf, "__dict__", {})
        for name in sorted(_names_read(type(leaf), "__getitem__", set(), 0) & held.keys()):
            if _is_path(held[name], 0):
                return f"{type(leaf).__name__}.{name}"
    return ""


def _names_read(kind: type, method: str, seen: set[str], depth: int) -> set[str]:
    """Names that a method mentions, also in the methods and properties of its own that it uses."""
    found = getattr(kind, method, None)
    function = found.fget if isinstance(found, property) else found
    if not isinstance(function, types.FunctionType) or method in seen or depth > _DEEPEST:
        return set()
    seen.add(method)
    names = names_of(function.__code__)
    return names.union(*(_names_read(kind, name, seen, depth + 1) for name in names))


def _is_path(value: Any, depth: int) -> bool:
    """Whether a value is an existing path, or a container that begins with one."""
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        return isinstance(text, str) and 0 < len(text) <= _MOST_PATH and "\0" not in text and os.path.exists(text)
    if depth >= _DEEPEST:
        return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "UO" and value.size > 0 and _is_path(value.flat[0], depth + 1)
    if isinstance(value, dict):
        return any(_is_path(part, depth + 1) for pair in list(value.items())[:1] for part in pair)
    return isinstance(value, (list, tuple)) and any(_is_path(part, depth + 1) for part in value[:2])
