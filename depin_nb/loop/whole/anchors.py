"""Objects whose identity matters, by number: so that what a copy of them went through can be brought back into the very same objects.

A notebook's names reach lists, dicts, tensors, modules, instances of its own classes. Each gets a number; a copy made elsewhere keeps the
numbers. What changed there comes back as the content of single objects, in which others are named by number, and is put in place.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Iterator
from typing import Any

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..find.codes import names_of
from ..find.definitions import is_user_module
from ..ship.objects import Roots
from .contents import SCALARS, TORCH_OWN, kind_of
from .fingerprints import fingerprint


def inside(value: Any, space: dict[str, Any] | None = None) -> Iterator[Any]:
    """The values that one value holds directly. `space`: a namespace whose functions reach its names."""
    kind = kind_of(value)
    if isinstance(value, (tuple, frozenset)) or kind in ("list", "set", "deque"):
        yield from value
    elif kind == "dict":
        for key, part in value.items():
            yield key
            yield part
    elif kind == "module":
        yield from (*value._parameters.values(), *value._buffers.values(), *value._modules.values())
        yield from (v for k, v in vars(value).items() if k not in TORCH_OWN)
    elif kind == "optimizer":
        yield from (p for group in value.param_groups for p in group["params"])
    elif kind == "scheduler":
        yield value.optimizer
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        if kind == "code":
            yield from _reached(value, space)
    elif kind == "code":
        yield from (v for v in vars(value).values() if isinstance(v, (types.FunctionType, property, classmethod, staticmethod)))
    elif isinstance(value, property):
        yield from (f for f in (value.fget, value.fset) if f is not None)
    elif isinstance(value, (classmethod, staticmethod)):
        yield value.__func__
    elif kind == "instance":
        yield type(value)
        yield from vars(value).values()
    elif not kind and not isinstance(value, (types.ModuleType, type)) and hasattr(value, "__dict__"):
        yield from vars(value).values()  # a loader, a dataset


def _reached(function: types.FunctionType, space: dict[str, Any] | None) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    scope = function.__globals__
    if space is None or scope is space or is_user_module(str(scope.get("__name__"))):
        yield from (scope[name] for name in names_of(function.__code__) if name in scope)


def anchors_of(names: dict[str, Any], space: dict[str, Any] | None = None) -> list[Any]:
    """Every object with an identity that the names reach, outermost first, each once."""
    seen: dict[int, Any] = {}
    found: list[Any] = []
    queue = collections.deque(names.values())
    while queue:
        value = queue.popleft()
        if type(value) in SCALARS or id(value) in seen:
            continue
        seen[id(value)] = value
        if kind_of(value):
            found.append(value)
        if type(value) in (list, dict, tuple, set) and len(value) > 64 and _only_scalars(value):
            continue
        queue.extend(inside(value, space))
    return found


def _only_scalars(value: Any) -> bool:
    parts = (*value, *value.values()) if isinstance(value, dict) else value
    return all(type(part) in SCALARS for part in parts)


class Anchors:
    """Numbered objects. `number(obj)`: its number, None for others."""

    def __init__(self, objects: list[Any]) -> None:
        self.objects = objects
        self.numbers = {id(obj): number for number, obj in enumerate(objects)}

    def number(self, value: Any) -> int | None:
        return self.numbers.get(id(value))

    def prints(self) -> list[bytes]:
        """A fingerprint of each object's own content; others in it count by their numbers."""
        return [fingerprint(obj, self.number) for obj in self.objects]

    def roots(self, names: dict[str, Any]) -> Roots:
        """Optimizers, schedulers and scalers among them, labelled as `names` calls them."""
        called = {id(v): n for n, v in names.items()}
        roots = Roots()
        for number, obj in enumerate(self.objects):
            label = called.get(id(obj), f"@{number}")
            if isinstance(obj, Optimizer):
                roots.optimizers[label] = obj
            elif isinstance(obj, LRScheduler):
                roots.schedulers[label] = obj
            elif isinstance(obj, GradScaler):
                roots.scalers[label] = obj
        return roots
