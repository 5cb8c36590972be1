"""What one iteration hands to the next, as data: tensors, and lists, tuples, dicts and deques of them, so that another worker can go on.

A structure is codec-plain: `("tensor", slot, needs a gradient, is a Parameter, has a history)`, `("value", v)`, `("list" | "tuple", [..])`,
`("dict", [[key, part], ..])`, `("deque", [..], maxlen)`, and `("lost", type)` for what can't travel. Its tensors are slots beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

from ...core.codec import can_encode
from ...core.errors import ReplayError, ShipError
from ...core.state import CARRIED, State
from ..paths import read, write

PREFIX = "names/"
_MAX_DEPTH = 16


def read_carried(
    env: MutableMapping[str, Any], paths: tuple[str, ...], put: Callable[[str, str, torch.Tensor], None], state: State
) -> None:
    """Adds to `state` what is at each path now; a path at which nothing is stays out."""
    for path in paths:
        try:
            value = read(env, path)
        except (LookupError, AttributeError, TypeError):
            continue
        tensors: list[torch.Tensor] = []
        structure = _packed(value, f"{PREFIX}{path}", tensors, 0)
        for number, tensor in enumerate(tensors):
            put(f"{PREFIX}{path}/{number}", CARRIED, tensor)
        state.plain[f"{PREFIX}{path}"] = structure


def write_carried(env: MutableMapping[str, Any], paths: tuple[str, ...], state: State) -> None:
    """Puts what the state holds for each path there. What is there already and is the same stays the object that it is."""
    for path, value in carried_values(state, paths).items():
        try:
            if same(read(env, path), value):
                continue
        except (LookupError, AttributeError, TypeError):
            pass
        try:
            write(env, path, value)
        except (LookupError, AttributeError, TypeError):
            raise ReplayError(f"there is no place for `{path}` any more", detail=path) from None


def carried_values(state: State, paths: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Values by path, shorter paths first. Raises ShipError where something can't be handed to another worker."""
    found: dict[str, Any] = {}
    for name in sorted(state.plain, key=len):
        path = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and (paths is None or path in paths):
            found[path] = _opened(state.plain[name], state.tensors, path, 0)
    return found


def refuse_lost(state: State, histories: set[str]) -> None:
    """Raises ShipError for what another worker could not go on with. `histories`: paths whose history of gradients counts."""
    for name, structure in state.plain.items():
        if name.startswith(PREFIX):
            what = _lost(structure, name.removeprefix(PREFIX) in histories)
            if what:
                raise ShipError(
                    f"the worker is gone, and with it `{name.removeprefix(PREFIX)}`: {what}",
                    name=name.removeprefix(PREFIX),
                    kind="carried",
                    hint="The model holds the last merge. Run the cell again; `.detach()` what an iteration keeps for the next one.",
                )


def same(a: Any, b: Any) -> bool:
    """Whether two values are alike in types, structure, numbers and gradient flags."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype and a.requires_grad == b.requires_grad
        return alike and torch.equal(a.detach().cpu(), b.detach().cpu())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a is b or (isinstance(a, (int, float, complex, str, bytes)) and a == b))


def _packed(value: Any, slot: str, tensors: list[torch.Tensor], depth: int) -> tuple[Any, ...]:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        tensors.append(value)
        return (
            "tensor",
            f"{slot}/{len(tensors) - 1}",
            value.requires_grad and value.is_leaf,
            isinstance(value, torch.nn.Parameter),
            value.grad_fn is not None,
        )
    kind = type(value)
    if depth < _MAX_DEPTH:
        if kind in (list, tuple):
            return kind.__name__, [_packed(part, slot, tensors, depth + 1) for part in value]
        if kind is dict and all(can_encode(key) for key in value):
            return "dict", [[key, _packed(part, slot, tensors, depth + 1)] for key, part in value.items()]
        if kind is deque:
            return "deque", [_packed(part, slot, tensors, depth + 1) for part in value], value.maxlen
    return ("value", value) if can_encode(value) else ("lost", kind.__name__)


def _opened(structure: Any, tensors: Mapping[str, torch.Tensor], path: str, depth: int) -> Any:
    """A structure as values. It may come from a worker: whatever doesn't fit is a ReplayError."""
    if not isinstance(structure, (tuple, list)) or len(structure) < 2 or depth > _MAX_DEPTH + 1:
        raise ReplayError(f"what `{path}` was can't be read", detail=path)
    kind, content = structure[0], structure[1]
    if kind == "tensor" and content in tensors and len(structure) == 5:
        value = tensors[content].clone()
        if structure[3]:
            return torch.nn.Parameter(value, requires_grad=bool(structure[2]))
        return value.requires_grad_() if structure[2] and value.is_floating_point() else value
    if kind == "value":
        return content
    if kind == "lost":
        return None
    if kind in ("list", "tuple", "deque") and isinstance(content, (list, tuple)):
        parts = [_opened(part, tensors, path, depth + 1) for part in content]
        maxlen = structure[2] if len(structure) > 2 and type(structure[2]) is int and structure[2] >= 0 else None
        return deque(parts, maxlen) if kind == "deque" else tuple(parts) if kind == "tuple" else parts
    if (
        kind == "dict"
        and isinstance(content, (list, tuple))
        and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in content)
    ):
        try:
            return {key: _opened(part, tensors, path, depth + 1) for key, part in content}
        except TypeError:
            pass
    raise ReplayError(f"what `{path}` was can't be read", detail=path)


def _lost(structure: Any, history: bool) -> str:
    kind, content = structure[0], structure[1]
    if kind == "tensor":
        return "it carries a history of gradients from one iteration to the next" if structure[4] and history else ""
    if kind == "lost":
        return f"a {content} can't be handed to another one"
    if kind == "dict":
        return next((said for _, part in content if (said := _lost(part, history))), "")
    return next((said for part in content if (said := _lost(part, history))), "") if kind in ("list", "tuple", "deque") else ""
