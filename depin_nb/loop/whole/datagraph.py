"""Names and objects as data alone: what a worker that ran a whole cell hands back, and what the notebook makes of it.

A table of nodes that refer to each other by index, so that aliases and cycles stay. Decoding runs nothing that the bytes name: classes are
the notebook's own, instances are made by `object.__new__` and given their attributes; functions and classes are only looked up by name.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...core.codec import TORCH_DTYPES, can_encode
from ...core.errors import CodecError
from .contents import SCALARS, is_own, kind_of

MAX_DEPTH = 200
MAX_NODES = 2_000_000
_FACTORIES = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str}


class Unsendable(Exception):
    """A value of which no data can be made; its type's name is the message."""


class Unknown(CodecError):
    """A node names a class or function that the notebook doesn't have."""


class Encoder:
    """Values as nodes. `number`: numbers of objects that the notebook has; `known`: whether it finds a function or class by its name."""

    def __init__(self, number: Callable[[Any], int | None], known: Callable[[Any], bool]) -> None:
        self.nodes: list[Any] = []
        self._number, self._known = number, known
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []

    def value(self, value: Any) -> int:
        """The index of a value's node. Raises Unsendable, and then the table is as it was before."""
        length, seen = len(self.nodes), dict(self._seen)
        try:
            return self._node(value, 0)
        except Unsendable:
            del self.nodes[length:]
            self._seen = seen
            raise

    def content(self, kind: str, held: Any) -> Any:
        """A content (see `contents.content`) of an object of that kind, with indices in place of its values."""
        if kind == "dict":
            return [[self.value(k), self.value(v)] for k, v in held]
        if kind == "module":
            return {part: {name: self.value(v) for name, v in values.items()} for part, values in held.items()}
        return [self.value(part) for part in held]

    def _node(self, value: Any, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise Unsendable("something nested too deeply")
        if id(value) in self._seen:
            return self._seen[id(value)]
        index = len(self.nodes)
        self.nodes.append(None)
        self._kept.append(value)
        self._seen[id(value)] = index
        self.nodes[index] = self._described(value, depth + 1)
        return index

    def _described(self, value: Any, depth: int) -> list[Any]:
        def parts(values: Any) -> list[int]:
            return [self._node(v, depth) for v in values]

        if (number := self._number(value)) is not None:
            return ["anchor", number]
        if type(value) in SCALARS or isinstance(value, np.generic):
            return ["plain", value]
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if isinstance(value, torch.Size):
            return ["size", list(value)]
        if type(value) in (tuple, frozenset, list, set):
            return [type(value).__name__, parts(value)]
        if isinstance(value, collections.deque):
            return ["deque", parts(value), value.maxlen]
        if isinstance(value, dict):
            return self._mapping(value, depth)
        if type(value) is np.ndarray and can_encode(value):
            return ["array", value]
        if isinstance(value, (bytearray, range)):
            return [type(value).__name__, bytes(value) if isinstance(value, bytearray) else [value.start, value.stop, value.step]]
        if is_own(value) and self._known(value):
            return ["code", value.__name__]
        if kind_of(value) in ("instance", "module"):
            kind = type(value)
            own = kind is types.SimpleNamespace or kind.__module__.startswith("torch.nn.modules.")
            if not own and not (is_own(kind) and self._known(kind)):
                raise Unsendable(kind.__name__)
            return ["instance", kind.__name__, [[k, self._node(v, depth)] for k, v in vars(value).items()]]
        raise Unsendable(type(value).__name__)

    def _tensor(self, value: torch.Tensor) -> list[Any]:
        if not can_encode(value) or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise Unsendable(f"{type(value).__name__} of layout {value.layout}")
        return ["tensor", value.detach(), isinstance(value, torch.nn.Parameter), value.requires_grad and value.is_leaf]

    def _mapping(self, value: dict[Any, Any], depth: int) -> list[Any]:
        factory = ""
        if isinstance(value, collections.defaultdict):
            factory = getattr(value.default_factory, "__name__", "")
            if factory not in _FACTORIES:
                raise Unsendable("defaultdict of its own kind")
        elif type(value) not in (dict, collections.OrderedDict, collections.Counter):
            raise Unsendable(type(value).__name__)
        return ["dict", [[self._node(k, depth), self._node(v, depth)] for k, v in value.items()], type(value).__name__, factory]


class Decoder:
    """Nodes as values. `anchors`: the notebook's own objects; `classes(name)`: the notebook's own class or function, None if it has none.

    The table is hostile: whatever doesn't fit raises CodecError.
    """

    def __init__(self, nodes: Any, anchors: list[Any], classes: Callable[[str], Any]) -> None:
        if type(nodes) is not list or len(nodes) > MAX_NODES:
            raise CodecError("not a table of nodes")
        self._nodes, self._anchors, self._classes = nodes, anchors, classes
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()

    def known(self, make: Callable[[], Any], what: str, missing: list[str]) -> Any:
        """What `make` decodes; None where it meets a class or function that isn't here, and `what` joins the missing."""
        made = dict(self._made)
        try:
            return make()
        except Unknown as error:
            self._made = made  # nothing half-filled is left
            missing.append(f"{what} ({error.message})")
            return None

    def anchor(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < len(self._anchors):
            raise CodecError("an object that the notebook doesn't have")
        return self._anchors[number]

    def value(self, index: Any, depth: int = 0) -> Any:
        if type(index) is not int or not 0 <= index < len(self._nodes) or depth > MAX_DEPTH + 8:
            raise CodecError("a node refers to nothing")
        if index in self._made:
            return self._made[index]
        if index in self._open:
            raise CodecError("a node is inside itself")
        node = self._nodes[index]
        if type(node) is not list or not node or type(node[0]) is not str or node[0] not in _MAKERS:
            raise CodecError("a node is malformed")
        kind, count = node[0], len(node) - 1
        self._open.add(index)
        try:
            if count != _MAKERS[kind][0]:
                raise CodecError("a node is malformed")
            _MAKERS[kind][1](self, index, depth + 1, *node[1:])
        except CodecError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError, RuntimeError) as error:
            raise CodecError(f"a node is malformed: {error}") from None
        finally:
            self._open.discard(index)
        return self._made[index]

    def many(self, indices: Any, depth: int = 0) -> list[Any]:
        if type(indices) is not list:
            raise CodecError("a node's parts are malformed")
        return [self.value(i, depth) for i in indices]

    def pairs(self, pairs: Any, depth: int = 0) -> list[tuple[Any, Any]]:
        if type(pairs) is not list or not all(type(p) is list and len(p) == 2 for p in pairs):
            raise CodecError("a mapping is malformed")
        return [(self.value(k, depth), self.value(v, depth)) for k, v in pairs]

    # --- one for each kind: the mutable ones are there before their parts, so that they may hold themselves ---

    def _anchor(self, index: int, depth: int, number: Any) -> None:
        self._made[index] = self.anchor(number)

    def _plain(self, index: int, depth: int, value: Any) -> None:
        if type(value) not in SCALARS and not isinstance(value, np.generic):
            raise CodecError("not a plain value")
        self._made[index] = value

    def _tensor(self, index: int, depth: int, tensor: Any, parameter: Any, grad: Any) -> None:
        if type(tensor) is not torch.Tensor or type(parameter) is not bool or type(grad) is not bool:
            raise CodecError("not a tensor")
        self._made[index] = torch.nn.Parameter(tensor, requires_grad=grad) if parameter else tensor.requires_grad_(grad)

    def _array(self, index: int, depth: int, array: Any) -> None:
        if type(array) is not np.ndarray:
            raise CodecError("not an array")
        self._made[index] = array

    def _dtype(self, index: int, depth: int, name: Any) -> None:
        if name not in TORCH_DTYPES:
            raise CodecError("not a dtype")
        self._made[index] = getattr(torch, name)

    def _size(self, index: int, depth: int, lengths: Any) -> None:
        self._made[index] = torch.Size(lengths)

    def _list(self, index: int, depth: int, indices: Any) -> None:
        made: list[Any] = []
        self._made[index] = made
        made.extend(self.many(indices, depth))

    def _set(self, index: int, depth: int, indices: Any) -> None:
        made: set[Any] = set()
        self._made[index] = made
        made.update(self.many(indices, depth))

    def _tuple(self, index: int, depth: int, indices: Any) -> None:
        self._made[index] = tuple(self.many(indices, depth))

    def _frozenset(self, index: int, depth: int, indices: Any) -> None:
        self._made[index] = frozenset(self.many(indices, depth))

    def _deque(self, index: int, depth: int, indices: Any, longest: Any) -> None:
        if longest is not None and (type(longest) is not int or longest < 0):
            raise CodecError("a deque is malformed")
        made: collections.deque[Any] = collections.deque(maxlen=longest)
        self._made[index] = made
        made.extend(self.many(indices, depth))

    def _dict(self, index: int, depth: int, pairs: Any, kind: Any, factory: Any) -> None:
        kinds: dict[str, Callable[[], dict[Any, Any]]] = {
            "dict": dict,
            "OrderedDict": collections.OrderedDict,
            "Counter": collections.Counter,
            "defaultdict": lambda: collections.defaultdict(_FACTORIES[factory]),
        }
        made = kinds[kind]()
        self._made[index] = made
        for key, value in self.pairs(pairs, depth):
            made[key] = value

    def _bytearray(self, index: int, depth: int, data: Any) -> None:
        if type(data) is not bytes:
            raise CodecError("not bytes")
        self._made[index] = bytearray(data)

    def _range(self, index: int, depth: int, bounds: Any) -> None:
        if type(bounds) is not list or len(bounds) != 3 or not all(type(b) is int for b in bounds):
            raise CodecError("a range is malformed")
        self._made[index] = range(*bounds)

    def _code(self, index: int, depth: int, name: Any) -> None:
        found = self._classes(name) if type(name) is str else None
        if found is None or not is_own(found):
            raise Unknown(f"the notebook has no {name!r}")
        self._made[index] = found

    def _instance(self, index: int, depth: int, name: Any, attributes: Any) -> None:
        kind = self._kind(name)
        made = types.SimpleNamespace() if kind is types.SimpleNamespace else object.__new__(kind)
        self._made[index] = made
        if type(attributes) is not list or not all(type(a) is list and len(a) == 2 and type(a[0]) is str for a in attributes):
            raise CodecError("an instance's attributes are malformed")
        vars(made).update({attribute: self.value(v, depth) for attribute, v in attributes})

    def _kind(self, name: Any) -> Any:
        """A class by name: the notebook's own, SimpleNamespace, or one of torch's modules."""
        found = self._classes(name) if type(name) is str else None
        if isinstance(found, type) and is_own(found) and not issubclass(found, BaseException):
            return found
        if name == "SimpleNamespace":
            return types.SimpleNamespace
        found = getattr(torch.nn, name, None) if type(name) is str else None
        if isinstance(found, type) and issubclass(found, torch.nn.Module) and found.__module__.startswith("torch.nn.modules."):
            return found
        raise Unknown(f"the notebook has no class {name!r}")


_MAKERS: dict[str, tuple[int, Callable[..., None]]] = {
    "anchor": (1, Decoder._anchor),
    "plain": (1, Decoder._plain),
    "tensor": (3, Decoder._tensor),
    "array": (1, Decoder._array),
    "dtype": (1, Decoder._dtype),
    "size": (1, Decoder._size),
    "list": (1, Decoder._list),
    "set": (1, Decoder._set),
    "tuple": (1, Decoder._tuple),
    "frozenset": (1, Decoder._frozenset),
    "deque": (2, Decoder._deque),
    "dict": (3, Decoder._dict),
    "bytearray": (1, Decoder._bytearray),
    "range": (1, Decoder._range),
    "code": (1, Decoder._code),
    "instance": (2, Decoder._instance),
}
