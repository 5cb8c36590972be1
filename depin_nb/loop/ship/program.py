"""A program as a worker holds it, and how it is opened. The kernel writes programs; only workers (and the kernel's own probe) open them."""

from __future__ import annotations

import ast
import io
import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...core.codec import decode
from ...core.errors import CodecError
from ..source import Opener
from ..split.callees import Callees
from ..values import Ghost
from . import packages
from .devices import own_device
from .hooks import put_hooks
from .local_modules import made_module
from .objects import Roots
from .secrets import Withheld

FORMAT = 2


@dataclass
class Program:
    """Everything about one loop entry that a worker needs, opened."""

    env: dict[str, Any]
    roots: Roots
    opener: Opener
    callees: Callees
    loop: ast.For
    filename: str
    flags: dict[str, Any]
    first: int = 0
    solo: bool = True
    stored: tuple[str, ...] = ()
    conditional: tuple[str, ...] = ()
    accumulators: tuple[str, ...] = ()
    stepped: tuple[str, ...] = ()
    counters: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    remote: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()  # names of containers that hooks fill: device-side


class _Opener(pickle.Unpickler):
    def __init__(self, data: bytes, table: list[dict[str, Any]], blob: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.table, self.blob = table, blob
        self.made: dict[int, Any] = {}
        self.modules: dict[str, types.ModuleType] = {}

    def persistent_load(self, pid: Any) -> Any:
        kind = pid[0]
        if kind == "ghost":
            return Ghost(pid[1])
        if kind == "withheld":
            return Withheld(pid[1])
        if kind == "device":
            return own_device(pid[1], pid[2])
        if kind in ("module", "space"):
            module = made_module(pid[1], self.modules)
            return module if kind == "module" else vars(module)
        return self._entry(pid[1])

    def _entry(self, index: int) -> Any:
        if index not in self.made:
            entry = self.table[index]
            self.made[index] = decode(self.blob(entry["array"])) if "array" in entry else self._tensor(entry)
        return self.made[index]

    def _tensor(self, entry: dict[str, Any]) -> torch.Tensor:
        dtype = getattr(torch, entry["dtype"])
        if "of" in entry:
            tensor = torch.as_strided(self._entry(entry["of"]), entry["shape"], entry["stride"], entry["offset"])
        elif "sparse" in entry:
            indices, values = decode(self.blob(entry["sparse"]))
            tensor = torch.sparse_coo_tensor(indices, values, entry["shape"], is_coalesced=True, check_invariants=True)
        elif "blob" in entry:
            tensor = decode(self.blob(entry["blob"]))
        else:
            tensor = torch.zeros(entry["shape"] if "shape" in entry else [entry["base"]], dtype=dtype)
        tensor = tensor.to(own_device(entry["device"]))
        if entry.get("parameter"):
            return torch.nn.Parameter(tensor, requires_grad=entry["grad"])
        return tensor.requires_grad_() if entry.get("grad") else tensor


def open_program(data: bytes, blob: Callable[[str], bytes]) -> Program:
    """A program as objects. Only workers (and the kernel's own probe) call this, and only with a kernel's bytes."""
    parts = decode(data)
    if parts.get("format") != FORMAT:
        raise CodecError("the program is of another version of depin-nb")
    packages.check(parts["packages"])
    env, opener, labels, contents, hooks = (unpickler := _Opener(parts["graph"], parts["table"], blob)).load()
    for name, values in contents.items():
        vars(unpickler.modules[name]).update(values)
    env.setdefault("__name__", "__main__")
    modules, optimizers, schedulers, scalers, tensors, watched = labels
    roots = Roots(modules, optimizers, schedulers, scalers, tensors, tuple(parts["carried"]), bool(parts["grads"]), watched)
    roots.mark()
    put_hooks(hooks)
    facts = parts["facts"]
    return Program(
        env=env,
        roots=roots,
        opener=opener,
        callees=Callees({(f, line, name): source for f, line, name, source in parts["sources"]}),
        loop=pickle.loads(parts["loop"]),
        filename=parts["filename"],
        flags=parts["flags"],
        first=parts["first"],
        solo=parts["solo"],
        stored=tuple(facts["stored"]),
        conditional=tuple(facts["conditional"]),
        accumulators=tuple(facts["accumulators"]),
        stepped=tuple(facts["stepped"]),
        counters={k: tuple(v) for k, v in facts["counters"].items()},
        remote=tuple(facts.get("remote", ())),
        placed=tuple(facts.get("placed", ())),
        devices=tuple(parts["devices"]),
        owned=tuple(parts["owned"]),
    )
