"""Values that a worker hands to the notebook: tensors without their graphs, containers of the same types, all as codec data.

A wire is `[plain, notes]`: `plain` holds lists, tuples, dicts, tensors, arrays, numbers and text; `notes` say which container is of another
type, and which tensor had a graph. Both come from a worker: what doesn't fit is refused, and no class is made that isn't there already.
"""

from __future__ import annotations

import collections
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch

from ...core.errors import ReplayError
from ..values import tensors_in
from .graphs import graph_names, revived

MAX_STORED_BYTES = 64 << 10  # of one value that a plain object keeps, or that a tensor in the notebook takes up
_FACTORIES = {"list": list, "int": int, "float": float, "dict": dict, "set": set}
_DEEPEST = 16


def pack(value: Any) -> list[Any]:
    """`value` as a wire; its tensors are copied to the CPU. Raises TypeError for what can't be handed to the notebook."""
    types: list[list[Any]] = []
    plain = _plain(value, [], types)
    graphs = graph_names(value) if _graphs_show(value, types) else []
    return [plain, {"types": types, "graphs": graphs if any(graphs) else []}]


def unpack(wire: Any, namespace: dict[str, Any]) -> Any:
    """The value of a wire. `namespace`: where named tuples of the user's are looked up. Raises ReplayError for what isn't a wire."""
    if type(wire) is not list or len(wire) != 2 or type(wire[1]) is not dict or type(wire[1].get("types")) is not list:
        raise ReplayError("a value from a worker is malformed", detail="wire")
    value = revived(wire[0], wire[1].get("graphs"))
    try:
        for path, kind, extra in reversed(wire[1]["types"]):
            value = _replace(value, list(path), kind, extra, namespace)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ReplayError(f"a value from a worker is malformed: {error}", detail="wire") from None
    return value


def nbytes(value: Any) -> int:
    """About how many bytes a value's tensors, arrays and texts take."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(nbytes(v) for v in value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return sum(nbytes(v) for v in value)
    return len(value) if isinstance(value, (str, bytes)) else int(getattr(value, "nbytes", 16))


def copied(value: Any) -> Any:
    """A plain value that later changes in place don't reach."""
    kind = type(value)
    if kind is list:
        return [copied(v) for v in value]
    if kind is dict:
        return {k: copied(v) for k, v in value.items()}
    if kind is tuple:
        return tuple(copied(v) for v in value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _graphs_show(value: Any, types: list[list[Any]]) -> bool:
    return any(t.requires_grad for t in tensors_in(value)) and not any(kind in ("set", "frozenset") for _, kind, _ in types)


def _plain(value: Any, path: list[Any], types: list[list[Any]]) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"an array of {value.dtype} can't be handed to the notebook")
        return value.copy()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        return value
    if len(path) >= _DEEPEST:
        raise TypeError("a value nests too deep to be handed to the notebook")
    note = _note(value)
    if note is not None:
        types.append([tuple(path), *note])
    if isinstance(value, dict):
        return {_key(k): _plain(v, [*path, k], types) for k, v in value.items()}
    if type(value) is tuple:
        return tuple(_plain(v, [*path, i], types) for i, v in enumerate(value))
    if note is not None or type(value) is list:
        return [_plain(v, [*path, i], types) for i, v in enumerate(value)]
    raise TypeError(f"a {type(value).__name__} can't be handed to the notebook")


def _key(key: Any) -> Any:
    if key is None or isinstance(key, (bool, int, float, str, bytes)) or (isinstance(key, tuple) and all(_key(k) is k for k in key)):
        return key
    raise TypeError(f"a dict with {type(key).__name__} keys can't be handed to the notebook")


def _note(value: Any) -> tuple[str, Any] | None:
    """(kind, what else is needed) of a container that isn't a list, tuple or dict; None for those three."""
    kind = type(value)
    if kind in (list, tuple, dict):
        return None
    if kind is OrderedDict:
        metadata = getattr(value, "_metadata", None)
        return "OrderedDict", [[k, dict(v)] for k, v in metadata.items()] if isinstance(metadata, dict) else None
    if kind is defaultdict:
        return "defaultdict", getattr(value.default_factory, "__name__", "")
    if kind is collections.Counter:
        return "Counter", None
    if kind is deque:
        return "deque", value.maxlen
    if kind is torch.Size:
        return "Size", None
    if kind in (set, frozenset):
        return kind.__name__, None
    if isinstance(value, tuple) and kind.__module__ == "torch.return_types":
        return "torch", kind.__name__
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return "named", kind.__qualname__
    if isinstance(value, dict):
        return None
    raise TypeError(f"a {kind.__name__} can't be handed to the notebook")


def _replace(value: Any, path: list[Any], kind: str, extra: Any, namespace: dict[str, Any]) -> Any:
    if path:
        head, *rest = path
        changed = _replace(value[head], rest, kind, extra, namespace)
        if isinstance(value, tuple):
            return (*value[:head], changed, *value[head + 1 :])
        value[head] = changed
        return value
    return _made(value, kind, extra, namespace)


def _made(value: Any, kind: str, extra: Any, namespace: dict[str, Any]) -> Any:
    if kind == "OrderedDict":
        made: Any = OrderedDict(value)
        if extra is not None:
            made._metadata = OrderedDict((k, dict(v)) for k, v in extra)
        return made
    if kind == "defaultdict":
        return defaultdict(_FACTORIES.get(extra), value)
    if kind == "Counter":
        return collections.Counter(value)
    if kind == "deque":
        return deque(value, extra)
    if kind == "Size":
        return torch.Size(value)
    if kind in ("set", "frozenset"):
        return set(value) if kind == "set" else frozenset(value)
    if kind == "torch":
        found: Any = getattr(torch.return_types, extra, None)
        return found(value) if isinstance(found, type) else tuple(value)
    if kind == "named":
        found = namespace.get(extra)
        return found._make(value) if isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_make") else tuple(value)
    raise ValueError(f"no container is called {kind!r}")
