"""The two passes over the graph of what a program reads: `Finder` looks at everything and writes nothing, `Shipper` writes.

Both decide alike what leaves the pickle: tensors and arrays (by number), devices, ghosts, withheld secrets, the user's own modules.
"""

from __future__ import annotations

import dis
import io
import logging
import socket
import threading
import types
import weakref
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import numpy as np
import torch
from cloudpickle import cloudpickle as internals
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from ..byte_count import ByteCount
from ..find.codes import codes_in, names_of
from ..source import stand_in
from ..split.originals import as_written
from ..values import is_metric_type
from .compiled import compiled_with, reduced
from .secrets import in_code, looks_secret, named_secrets

STATEFUL = (torch.nn.Module, Optimizer, LRScheduler, GradScaler)
INLINE_BYTES = 4096  # arrays up to this size stay in the pickle
_GHOST_MODULES = (
    "tqdm",
    "torch.utils.tensorboard",
    "tensorboardX",
    "ipywidgets",
    "IPython",
    "ipykernel",
    "matplotlib",
    "logging",
    "sqlite3",
    "depin_nb.session",
    "depin_nb.hub",
)
_GHOST_TYPES = (
    io.IOBase,
    socket.socket,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Thread,
    types.GeneratorType,
    weakref.ref,
)
_ATOMS = (int, float, bool, complex, type(None))
_IMPORT = dis.opmap["IMPORT_NAME"]


def is_ghost(value: Any) -> bool:
    """Whether a value never leaves the notebook."""
    if isinstance(value, (type, types.ModuleType, types.FunctionType)):
        return False
    if isinstance(value, (io.BytesIO, io.StringIO, logging.Logger)):
        return False  # a logger travels by name: what it says on a worker is heard here
    module = type(value).__module__
    return isinstance(value, _GHOST_TYPES) or any(module == m or module.startswith(m + ".") for m in _GHOST_MODULES)


@dataclass
class Scope:
    """What both passes know of where the loop stands. `env` becomes the namespace of functions whose globals are `space`."""

    space: dict[str, Any]
    env: dict[str, Any]
    modules: dict[str, types.ModuleType] = field(default_factory=dict)
    send: frozenset[str] = frozenset()
    sent: set[int] = field(default_factory=set)  # ids of texts in functions that `send` names
    withheld: dict[int, str] = field(default_factory=dict)  # id of a secret -> how the user calls it
    ghosted: dict[int, str] = field(default_factory=dict)  # id of what can't be pickled and isn't needed -> the same
    kept: list[Any] = field(default_factory=list)  # keeps those ids meaningful

    def withhold(self, value: Any, name: str) -> None:
        if id(value) not in self.withheld:
            self.kept.append(value)
            self.withheld[id(value)] = name

    def let_go(self, value: Any, name: str) -> None:
        self.kept.append(value)
        self.ghosted[id(value)] = name


@dataclass
class Found:
    """What the first pass met, each in the order of the graph."""

    stateful: dict[int, Any] = field(default_factory=dict)
    metrics: dict[int, Any] = field(default_factory=dict)  # bookkeeping: updated in the notebook too, by value
    leaves: dict[int, torch.Tensor] = field(default_factory=dict)  # trained directly, no Parameter
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    arrays: dict[int, np.ndarray] = field(default_factory=dict)
    detached: dict[int, torch.Tensor] = field(default_factory=dict)  # with a graph that they lose on the way
    roots: set[str] = field(default_factory=set)  # top-level modules that are named, not written
    modules: dict[str, types.ModuleType] = field(default_factory=dict)  # the user's own, as objects
    used: set[str] = field(default_factory=set)  # names and attributes in the code of functions that are written
    texts: set[str] = field(default_factory=set)  # short texts, for devices named by text
    devices: set[str] = field(default_factory=set)
    data: bool = False  # whether a dataset is in it
    compiled: dict[int, str] = field(default_factory=dict)  # backends of compiled models and functions


class Graph(cloudpickle.Pickler):
    """What both passes share."""

    def __init__(self, file: Any, scope: Scope) -> None:
        super().__init__(file, protocol=5)
        self.scope = scope
        self._spaces: dict[int, str] = {}
        for name, module in scope.modules.items():
            placeholder: dict[str, Any] = {"__name__": name}
            self.globals_ref[id(vars(module))] = placeholder
            self._spaces[id(placeholder)] = name
        if not any(vars(m) is scope.space for m in scope.modules.values()):
            self.globals_ref[id(scope.space)] = scope.env

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in _ATOMS:
            return None
        scope = self.scope
        if id(obj) in scope.withheld:
            return "withheld", scope.withheld[id(obj)]
        if kind is dict and id(obj) in self._spaces:
            return "space", self._spaces[id(obj)]
        if id(obj) in scope.ghosted:
            return "ghost", scope.ghosted[id(obj)]
        if isinstance(obj, torch.Tensor):
            return "tensor", self.tensor(obj)
        if isinstance(obj, np.ndarray):
            big = obj.dtype.kind in "biufc" and obj.nbytes > INLINE_BYTES and kind is np.ndarray
            return ("array", self.array(obj)) if big else None
        if isinstance(obj, torch.device):
            return "device", obj.type, obj.index
        if kind is types.ModuleType and obj.__name__ in scope.modules:
            return "module", obj.__name__
        if is_ghost(obj):
            return "ghost", kind.__name__
        return None

    def tensor(self, tensor: torch.Tensor) -> int:
        raise NotImplementedError

    def array(self, array: np.ndarray) -> int:
        raise NotImplementedError

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            return self._class(obj)
        if isinstance(obj, types.FunctionType) and (twin := as_written(obj)) is not None:
            self.scope.kept.append(twin)
            obj = twin
        made = stand_in(obj) or reduced(obj)
        return made if made is not None else super().reducer_override(obj)

    def _class(self, kind: type) -> Any:
        """A class by value without cloudpickle's tracker: where a program is opened in the kernel (the probe does), the tracker would
        find the user's own class and set copies of the methods into it."""
        reduced_class = super().reducer_override(kind)
        if not isinstance(reduced_class, tuple) or len(reduced_class) < 3:
            return reduced_class
        tracker = internals._get_or_create_tracker_id(kind)
        made, arguments, *rest = reduced_class
        return made, tuple(None if a is tracker or (type(a) is str and a == tracker) else a for a in arguments), *rest


class Finder(Graph):
    """The first pass. `at` is the name whose value is being looked at; `count`: bytes so far, each thing once."""

    def __init__(self, scope: Scope, found: Found, at: str = "") -> None:
        self._sink = ByteCount()
        super().__init__(self._sink, scope)
        if self.globals_ref.get(id(scope.space)) is scope.env:  # each name is looked at by itself, not as part of a function's namespace
            self.globals_ref[id(scope.space)] = {"__name__": "__main__"}
        self.found, self.at = found, at
        self._data = 0

    @property
    def count(self) -> int:
        return self._sink.nbytes + self._data

    def look(self, value: Any) -> int:
        """Looks at one more value; returns the bytes that it adds."""
        before = self.count
        self.dump(value)
        return self.count - before

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is dict:
            self._secrets(obj)
        elif kind is str and len(obj) <= 8:
            self.found.texts.add(obj)
        sent = self.at in self.scope.send or id(obj) in self.scope.sent
        if kind is not dict and kind not in _ATOMS and not sent and looks_secret(obj):
            self.scope.withhold(obj, self.at or kind.__name__)
        given = super().persistent_id(obj)
        if given is not None:
            if given[0] == "device":
                self.found.devices.add(obj.type)
            elif given[0] == "module":
                self.found.modules.setdefault(given[1], obj)
            return given
        if isinstance(obj, (type, types.FunctionType, types.BuiltinFunctionType)):
            self.found.roots.add(str(getattr(obj, "__module__", "") or "").split(".")[0])
        elif isinstance(obj, types.ModuleType):
            self.found.roots.add(obj.__name__.split(".")[0])
        elif isinstance(obj, Dataset):
            self.found.data = True
        elif is_metric_type(kind):
            self.found.metrics[id(obj)] = obj
        elif isinstance(obj, STATEFUL):
            self.found.stateful.setdefault(id(obj), obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        backend = compiled_with(obj) if isinstance(obj, (torch.nn.Module, types.FunctionType)) else ""
        if backend:
            self.found.compiled[id(obj)] = backend
        made = super().reducer_override(obj)
        if isinstance(obj, types.FunctionType) and made is not NotImplemented:
            self._code((as_written(obj) or obj).__code__)
        return made

    def tensor(self, tensor: torch.Tensor) -> int:
        found = self.found
        if id(tensor) not in found.tensors:
            found.tensors[id(tensor)] = tensor
            self._data += tensor.numel() * tensor.element_size()
            found.devices.add(tensor.device.type)
            if tensor.is_leaf and tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter):
                found.leaves[id(tensor)] = tensor
            elif not tensor.is_leaf:
                found.detached[id(tensor)] = tensor
        return 0

    def array(self, array: np.ndarray) -> int:
        if id(array) not in self.found.arrays:
            self.found.arrays[id(array)] = array
            self._data += array.nbytes
        return 0

    def _secrets(self, values: dict[Any, Any]) -> None:
        send, at = self.scope.send, self.at
        if at in send and at:
            return
        for name, value in named_secrets(values):
            if name not in send:
                self.scope.withhold(value, name if not at or name == at else f"{at}.{name}")
        if id(values) not in self._spaces and looks_secret(values):
            self.scope.withhold(values, at or "os.environ")

    def _code(self, code: types.CodeType) -> None:
        self.found.used |= names_of(code)
        for constant, name in in_code(code):
            if code.co_name in self.scope.send:
                self.scope.kept.append(constant)
                self.scope.sent.add(id(constant))
            elif self.at not in self.scope.send:
                self.scope.withhold(constant, name)
        for each in codes_in(code):
            if _IMPORT in each.co_code[::2]:
                imported = [str(i.argval).split(".")[0] for i in dis.get_instructions(each) if i.opcode == _IMPORT]
                self.found.roots.update(imported)
            self.found.texts.update(c for c in each.co_consts if isinstance(c, str) and len(c) <= 8)


def picklable(value: Any, scope: Scope) -> Exception | None:
    """The exception that writing `value` raises, None when it can be written."""
    try:
        Finder(scope, Found()).dump(value)
    except Exception as error:
        return error
    return None
