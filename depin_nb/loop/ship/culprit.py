"""Where in an object the part is that can't be sent: the path to it, as the user would write it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

_DEPTH = 16


@dataclass(frozen=True)
class Culprit:
    """`path` continues the name: `.logger.handlers[0].stream`. `owners`: the objects on the way, outermost first."""

    path: str
    value: Any
    owners: tuple[Any, ...]


def culprit(value: Any, fails: Callable[[Any], bool]) -> Culprit:
    """The innermost part of `value` that `fails` by itself."""
    path, owners, seen = "", [], {id(value)}
    for _ in range(_DEPTH):
        for step, part in _parts(value):
            if id(part) not in seen and fails(part):
                seen.add(id(part))
                owners.append(value)
                path, value = path + step, part
                break
        else:
            break
    return Culprit(path, value, tuple(owners))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in list(value.items()))
        return
    if isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{place}]", part) for place, part in enumerate(list(value)))
        return
    if isinstance(value, types.MethodType):
        yield "", value.__self__
        return
    if isinstance(value, types.FunctionType):
        bound = inspect.getclosurevars(value)
        for names in (bound.nonlocals, bound.globals):
            yield from ((f" -> {name}", part) for name, part in names.items() if not isinstance(part, types.ModuleType))
        return
    if isinstance(value, type):
        yield from ((f".{name}", part) for name, part in vars(value).items() if isinstance(part, types.FunctionType))
        return
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        inner = ("_modules", "_parameters", "_buffers") if isinstance(value, torch.nn.Module) else ()
        for name in inner:
            yield from ((f".{key}", part) for key, part in held.get(name, {}).items() if part is not None)
        yield from ((f".{key}", part) for key, part in held.items() if key not in inner)
