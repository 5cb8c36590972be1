"""Ships what the worker half reads: one pickle graph that keeps every alias, with tensors outside it.

The kernel writes programs and only workers open them; the other way nothing is ever pickled. Tensors leave the pickle: contents that
training changes travel as the run's `State`, all others as blobs by sha256, so that a dataset reaches a worker once. Objects that
can't or mustn't leave (open files, progress bars, writers, locks) arrive as ghosts: every use of them is silent there.
"""

from __future__ import annotations

import ast
import hashlib
import io
import pickle
import socket
import threading
import types
import weakref
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..core.codec import encode
from ..core.errors import ShipError
from .callees import Callees
from .objects import Roots
from .program import FORMAT
from .source import Opener
from .values import Ghost

_INLINE_BYTES = 4096
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


@dataclass
class Shipment:
    """A program as bytes, the blobs that it refers to, and what was left behind. `roots` are the user's own objects."""

    program: bytes
    blobs: dict[str, bytes]
    roots: Roots
    ghosts: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return len(self.program) + sum(map(len, self.blobs.values()))


def numeric_flags() -> dict[str, Any]:
    return {
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def is_ghost(value: Any) -> bool:
    """Whether a value never leaves the notebook."""
    if isinstance(value, (type, types.ModuleType, types.FunctionType)):
        return False
    if isinstance(value, (io.BytesIO, io.StringIO)):
        return False
    module = type(value).__module__
    return isinstance(value, _GHOST_TYPES) or any(module == m or module.startswith(m + ".") for m in _GHOST_MODULES)


class _Finder(cloudpickle.Pickler):
    """A first pass over the graph: which stateful objects are in it, outermost first."""

    def __init__(self, space: dict[str, Any], env: dict[str, Any]) -> None:
        super().__init__(_Sink(), protocol=5)
        self.globals_ref[id(space)] = env
        self.found: dict[int, Any] = {}
        self.leaves: dict[int, torch.Tensor] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            if obj.is_leaf and obj.requires_grad and not isinstance(obj, torch.nn.Parameter):
                self.leaves[id(obj)] = obj
            return 0
        if isinstance(obj, np.ndarray) and obj.dtype.kind in "biufc":
            return 0
        if is_ghost(obj):
            return 0
        if isinstance(obj, (torch.nn.Module, Optimizer, LRScheduler, GradScaler)):
            self.found.setdefault(id(obj), obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        reduced = _reduce_optimizer(obj)
        return reduced if reduced is not None else super().reducer_override(obj)


class _Sink(io.RawIOBase):
    """Takes bytes and drops them."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes


class _Shipper(cloudpickle.Pickler):
    """The second pass: writes the graph, with tensors, arrays and ghosts by reference."""

    def __init__(self, file: io.BytesIO, space: dict[str, Any], env: dict[str, Any], mutable: set[int]) -> None:
        super().__init__(file, protocol=5)
        self.globals_ref[id(space)] = env
        self.mutable = mutable  # ids of tensors whose contents travel as State
        self.kept: list[Any] = []
        self.tensors: dict[int, int] = {}
        self.table: list[dict[str, Any]] = []
        self.blobs: dict[str, bytes] = {}
        self.arrays: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return "tensor", self._tensor(obj)
        if isinstance(obj, np.ndarray) and obj.dtype.kind in "biufc" and obj.nbytes > _INLINE_BYTES and type(obj) is np.ndarray:
            return "array", self._array(obj)
        if isinstance(obj, torch.device):
            return "device", obj.type, obj.index
        if is_ghost(obj):
            return "ghost", type(obj).__name__
        return None

    def reducer_override(self, obj: Any) -> Any:
        reduced = _reduce_optimizer(obj)
        return reduced if reduced is not None else super().reducer_override(obj)

    def _blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def _array(self, array: np.ndarray) -> int:
        if id(array) not in self.arrays:
            self.kept.append(array)
            self.arrays[id(array)] = len(self.table)
            self.table.append({"array": self._blob(encode(array))})
        return self.arrays[id(array)]

    def _tensor(self, tensor: torch.Tensor) -> int:
        if id(tensor) in self.tensors:
            return self.tensors[id(tensor)]
        self.kept.append(tensor)
        index = self.tensors[id(tensor)] = len(self.table)
        entry: dict[str, Any] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "grad": tensor.requires_grad and tensor.is_leaf,
            "parameter": isinstance(tensor, torch.nn.Parameter),
            "device": tensor.device.type,
        }
        self.table.append(entry)
        if id(tensor) in self.mutable:
            return index
        value = tensor.detach()
        if value.layout is not torch.strided:
            raise ShipError(f"a tensor of layout {value.layout} can't be sent", kind="tensor", hint="Keep it dense between loops.")
        entry["blob"] = self._blob(encode(value))
        return index


def _reduce_optimizer(obj: Any) -> Any:
    """`Optimizer.__getstate__` drops attributes (LBFGS breaks): its `__dict__` travels, without a scheduler's patch and without hooks."""
    if not isinstance(obj, Optimizer):
        return None
    dropped = {"step"}
    state = {k: v for k, v in obj.__dict__.items() if k not in dropped and not k.endswith("_hooks")}
    return _bare, (type(obj),), state, None, None, _restore_optimizer


def _bare(kind: Any) -> Any:
    return kind.__new__(kind)


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    Optimizer.__setstate__(optimizer, state)


def ship(
    *,
    names: dict[str, Any],
    space: dict[str, Any],
    opener: Opener,
    callees: Callees,
    loop: ast.For,
    filename: str,
    solo: bool,
    first: int,
    carried: tuple[str, ...],
    grads: bool,
    facts: dict[str, Any],
    shared: bool,
) -> Shipment:
    """One program from the names that the worker half reads. `space` is the globals of the user's functions; `shared`: the loop
    stands in a cell, so those globals are its own names too.

    Raises ShipError naming what can't leave. Nothing of the user's is changed.
    """
    names = dict(names)
    ghosts = _set_ghosts(names, space, opener)
    env = dict(names)
    globals_ = env if shared else {"__name__": "__main__"}
    finder = _Finder(space, globals_)
    try:
        finder.dump((env, opener))
    except Exception as error:
        raise _unshippable(error, "the loop's names") from error
    roots = _label(finder, names, space)
    roots.carried, roots.grads = carried, grads
    mutable = {id(t) for _, _, t in roots.slots()}
    for optimizer in roots.optimizers.values():
        mutable.update(id(v) for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    file = io.BytesIO()
    shipper = _Shipper(file, space, env if shared else {"__name__": "__main__"}, mutable)
    labels = [roots.modules, roots.optimizers, roots.schedulers, roots.scalers, roots.tensors]
    try:
        shipper.dump((env, opener, labels))
    except ShipError:
        raise
    except Exception as error:
        raise _unshippable(error, "the loop's names") from error
    program = encode(
        {
            "format": FORMAT,
            "graph": file.getvalue(),
            "table": shipper.table,
            "loop": pickle.dumps(loop),
            "filename": filename,
            "sources": [[*key, source] for key, source in callees.sources.items()],
            "flags": numeric_flags(),
            "carried": list(carried),
            "grads": grads,
            "solo": solo,
            "first": first,
            "facts": facts,
        }
    )
    return Shipment(program, shipper.blobs, roots, ghosts)


def _set_ghosts(names: dict[str, Any], space: dict[str, Any], opener: Opener) -> dict[str, Any]:
    """Replaces, by name, what can't be pickled at all; stateful objects that can't are an error with their name."""
    ghosts: dict[str, Any] = {}
    for name, value in names.items():
        if is_ghost(value):
            ghosts[name] = value
            continue
        if isinstance(value, (int, float, str, bool, type(None), types.ModuleType, torch.Tensor)):
            continue
        finder = _Finder(space, {})
        try:
            finder.dump(value)
        except Exception as error:
            if finder.found or isinstance(value, (torch.utils.data.Dataset, types.FunctionType, type)):
                raise _unshippable(error, f"`{name}`", name, type(value).__name__) from error
            ghosts[name] = value
    for name in ghosts:
        names[name] = Ghost(name)
    try:
        _Finder(space, {}).dump(opener)
    except Exception as error:
        raise _unshippable(error, "the loader's dataset or collate_fn") from error
    return ghosts


def _unshippable(error: Exception, what: str, name: str = "", kind: str = "") -> ShipError:
    return ShipError(
        f"{what} can't be sent to a worker: {type(error).__name__}: {error}",
        name=name,
        kind=kind,
        hint="Keep open files, locks, sockets and generators out of models, optimizers and datasets (or make them in __getstate__).",
    )


def _label(finder: _Finder, names: dict[str, Any], space: dict[str, Any]) -> Roots:
    """Names every root as the user does; submodules belong to their outermost module."""
    by_id = {id(v): n for n, v in space.items() if not n.startswith("_")}
    by_id.update({id(v): n for n, v in names.items()})
    roots, used = Roots(), set()
    inner = {id(child) for m in finder.found.values() if isinstance(m, torch.nn.Module) for child in m.modules() if child is not m}

    def label(obj: Any) -> str:
        base = by_id.get(id(obj), type(obj).__name__.lower())
        name, count = base, 1
        while name in used:
            count += 1
            name = f"{base}#{count}"
        used.add(name)
        return name

    for obj in finder.found.values():
        if isinstance(obj, torch.nn.Module):
            if id(obj) not in inner:
                roots.modules[label(obj)] = obj
        elif isinstance(obj, Optimizer):
            roots.optimizers[label(obj)] = obj
        elif isinstance(obj, GradScaler):
            roots.scalers[label(obj)] = obj
        else:
            roots.schedulers[label(obj)] = obj
    for leaf in finder.leaves.values():
        roots.tensors[label(leaf)] = leaf
    return roots
