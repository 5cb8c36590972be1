"""Items as units carry them: codec values, and around them the user's own types (named tuples, dataclasses, dict subclasses).

A user's type is named by its place in a table that travels in the program, so that it is the same class there as everywhere else in it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import torch

from ...core.codec import can_encode
from ...core.errors import RefusedLoop

_MAX_DEPTH = 24
_AS_IS, _BUILT = 0, 1  # an item is the codec value itself, or a tree of tagged parts
_LEAF, _LIST, _TUPLE, _DICT, _NAMED, _OBJECT, _MAPPING, _SET, _GRAD = range(9)


class Forms:
    """The table of the user's types that items have. `sealed`: it has travelled, so nothing may be added."""

    def __init__(self) -> None:
        self.kinds: list[type] = []
        self.sealed = False

    def __getstate__(self) -> dict[str, Any]:
        return {"kinds": self.kinds, "sealed": True}

    def closed(self, item: Any) -> list[Any]:
        """An item as codec data. Raises RefusedLoop, naming the type, for one that can't travel."""
        if can_encode(item) and not _has_grad(item):
            return [_AS_IS, item]
        return [_BUILT, self._tagged(item, 0)]

    def opened(self, data: Any) -> Any:
        kind, value = data
        return value if kind == _AS_IS else self._built(value)

    def _tagged(self, value: Any, depth: int) -> list[Any]:
        kind = type(value)
        if depth > _MAX_DEPTH:
            raise _stuck(kind)
        if isinstance(value, torch.Tensor) and value.requires_grad and can_encode(value):
            if not value.is_leaf:
                raise RefusedLoop(
                    "the loop's items are tensors that carry a graph of their own, which can't be sent to a worker",
                    hint="Compute them inside the loop's body, or detach() them.",
                    reason="items with a graph",
                )
            return [_GRAD, value]
        if can_encode(value) and not _has_grad(value):
            return [_LEAF, value]
        if kind is list or kind is tuple:
            return [_LIST if kind is list else _TUPLE, [self._tagged(v, depth + 1) for v in value]]
        if kind is dict:
            return [_DICT, self._pairs(value, depth)]
        if kind in (set, frozenset):
            return [_SET, kind is frozenset, [self._tagged(v, depth + 1) for v in value]]
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return [_NAMED, self._place(kind), [self._tagged(v, depth + 1) for v in value]]
        if isinstance(value, dict):
            return [_MAPPING, self._place(kind), self._pairs(value, depth), self._pairs(_attributes(value), depth)]
        if dataclasses.is_dataclass(kind) or (hasattr(value, "__dict__") and _plainly_pickled(kind)):
            return [_OBJECT, self._place(kind), self._pairs(_attributes(value), depth)]
        raise _stuck(kind)

    def _pairs(self, value: dict[Any, Any], depth: int) -> list[Any]:
        return [[self._tagged(k, depth + 1), self._tagged(v, depth + 1)] for k, v in value.items()]

    def _place(self, kind: type) -> int:
        if kind not in self.kinds:
            if self.sealed:
                raise RefusedLoop(
                    f"the loop's items are of another type from here on: {kind.__name__}",
                    hint="Give all items one type; the weights are those of the last merge.",
                    reason="another type of item",
                )
            self.kinds.append(kind)
        return self.kinds.index(kind)

    def _built(self, tagged: list[Any]) -> Any:
        tag = tagged[0]
        if tag == _LEAF:
            return tagged[1]
        if tag == _GRAD:
            return tagged[1].requires_grad_()
        if tag == _LIST:
            return [self._built(v) for v in tagged[1]]
        if tag == _TUPLE:
            return tuple(self._built(v) for v in tagged[1])
        if tag == _DICT:
            return {self._built(k): self._built(v) for k, v in tagged[1]}
        if tag == _SET:
            return (frozenset if tagged[1] else set)(self._built(v) for v in tagged[2])
        kind = self.kinds[tagged[1]]
        if tag == _NAMED:
            return tuple.__new__(kind, [self._built(v) for v in tagged[2]])
        value = kind.__new__(kind)
        if tag == _MAPPING:
            put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__  # not a subclass' own
            for k, v in tagged[2]:
                put(value, self._built(k), self._built(v))
        for k, v in tagged[-1]:
            object.__setattr__(value, self._built(k), self._built(v))
        return value


def _plainly_pickled(kind: type) -> bool:
    """Whether an instance is its `__dict__` and nothing else."""
    own = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
    return all(getattr(kind, name, None) is getattr(object, name, None) for name in own)


def _has_grad(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(_has_grad(part) for part in parts)


def _attributes(value: Any) -> dict[str, Any]:
    own = dict(getattr(value, "__dict__", {}))
    if dataclasses.is_dataclass(value):  # with slots, the fields are elsewhere
        own.update({f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)})
    return own


def _stuck(kind: type) -> RefusedLoop:
    return RefusedLoop(
        f"the loop iterates {kind.__name__} objects, which can't be sent to a worker",
        hint="Iterate tensors, arrays, numbers, or lists, dicts, named tuples and dataclasses of them.",
        reason="items can't travel",
    )
