"""What a loop leaves behind under a name, by value: tensors, containers of them, copies of a model."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ...core.codec import decode, encode
from ...core.errors import CodecError, ReplayError
from ..source import holds_remote
from .byvalue import nbytes, pack, unpack

MAX_LEFT_BYTES = 64 << 20
MODULE, OWN = "module", "own"


def pack_left(found: Mapping[str, Any], modules: Mapping[str, torch.nn.Module]) -> bytes:
    """Codec bytes of the values, the smallest first while they fit. A copy of one of `modules` travels as that one's name and its state; a
    part of one (a layer, a parameter) as its path alone: in the notebook the name then means the notebook's own, as it does here."""
    wires: dict[str, Any] = {}
    room = MAX_LEFT_BYTES
    for name, value in sorted(found.items(), key=lambda pair: _size(pair[1])):
        own = _path_of(value, modules)
        room -= 0 if own else _size(value)
        if room < 0:
            break
        wire = own or _wire(value, modules)
        if wire is not None:
            wires[name] = wire
    return encode({name: wires[name] for name in found if name in wires})


def unpack_left(left: bytes, modules: Mapping[str, torch.nn.Module], namespace: dict[str, Any], *, max_bytes: int) -> dict[str, Any]:
    """The values by name. `modules`: the notebook's own, of which copies are made. Raises ReplayError for what is malformed."""
    try:
        wires = decode(left, max_bytes=max_bytes) if left else {}
    except CodecError as error:
        raise ReplayError(f"the names left behind can't be read: {error}", detail="left") from None
    if type(wires) is not dict or not all(type(name) is str for name in wires):
        raise ReplayError("the names left behind are malformed", detail="left")
    return {name: _value(wire, modules, namespace) for name, wire in wires.items()}


def still_absent(places: Iterable[tuple[Any, tuple[bool, Any]]], names: Mapping[str, Any]) -> list[str]:
    """What the user calls the (owner, step) whose values have stayed on a worker. `names`: of the loop's frame."""
    said = []
    for owner, (is_item, key) in places:
        try:
            value = owner[key] if is_item else getattr(owner, key)
        except (LookupError, AttributeError, TypeError):
            continue
        if holds_remote(value):
            step = f"[{key!r}]" if type(key) in (int, str) else "[...]"
            said.append(_called(owner, names) + (step if is_item else f".{key}"))
    return said


def _called(owner: Any, names: Mapping[str, Any]) -> str:
    for name, value in names.items():
        if value is owner:
            return name
    held = ((name, getattr(value, "__dict__", None)) for name, value in names.items() if not isinstance(value, (type, types.ModuleType)))
    inner = (f"{name}.{key}" for name, inside in held if type(inside) is dict for key, value in inside.items() if value is owner)
    return next(inner, type(owner).__name__)


def _wire(value: Any, modules: Mapping[str, torch.nn.Module]) -> Any:
    if isinstance(value, torch.nn.Module):
        label = next((n for n, m in modules.items() if value is not m and _alike(value, m)), None)
        return None if label is None else [MODULE, label, pack(value.state_dict()), value.training]
    try:
        return pack(value)
    except TypeError:
        return None


def _path_of(value: Any, modules: Mapping[str, torch.nn.Module]) -> list[str] | None:
    if not isinstance(value, (torch.nn.Module, torch.Tensor)):
        return None
    for label, module in modules.items():
        kind = next((kind for kind in _PARTS if isinstance(value, _PARTS[kind][0])), "")
        path = next((path for path, part in _PARTS[kind][1](module) if part is value), None)
        if path is not None:
            return [OWN, label, kind, path]
    return None


def _part_of(module: torch.nn.Module | None, kind: Any, path: Any) -> Any:
    parts = dict(_PARTS[kind][1](module)) if module is not None and type(kind) is str and kind in _PARTS else {}
    if type(path) is not str or path not in parts:
        raise ReplayError("a part of a model that the notebook doesn't have was left behind", detail="left")
    return parts[path]


#: How a name can mean a part of a model, by the part's type.
_PARTS: dict[str, tuple[type, Callable[[torch.nn.Module], Iterator[tuple[str, Any]]]]] = {
    "module": (torch.nn.Module, lambda module: module.named_modules()),
    "parameter": (torch.nn.Parameter, lambda module: module.named_parameters()),
    "buffer": (torch.Tensor, lambda module: module.named_buffers()),
}


def _value(wire: Any, modules: Mapping[str, torch.nn.Module], namespace: dict[str, Any]) -> Any:
    if type(wire) is list and len(wire) == 4 and wire[0] == OWN:
        return _part_of(modules.get(wire[1]) if type(wire[1]) is str else None, wire[2], wire[3])
    if type(wire) is not list or len(wire) != 4 or wire[0] != MODULE:
        return unpack(wire, namespace)
    own = modules.get(wire[1]) if type(wire[1]) is str else None
    state = unpack(wire[2], namespace)
    if own is None or not isinstance(state, dict):
        raise ReplayError("a model left behind is malformed", detail="left")
    made = copy.deepcopy(own)
    try:
        made.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ReplayError(f"a model left behind is malformed: {error}", detail="left") from None
    return made.train(bool(wire[3]))


def _alike(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    if type(a) is not type(b):
        return False
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(
        isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.shape == y.shape
        for x, y in zip(ours.values(), theirs.values(), strict=True)
    )


def _size(value: Any) -> int:
    return nbytes(dict(value.state_dict())) if isinstance(value, torch.nn.Module) else nbytes(value)
