"""A program as a worker holds it, and how it is opened. The kernel writes programs; only workers (and the kernel's own probe) open them."""

from __future__ import annotations

import ast
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.codec import decode
from ..core.errors import CodecError
from .callees import Callees
from .objects import Roots
from .source import Opener
from .values import Ghost

FORMAT = 1


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


class _Opener(pickle.Unpickler):
    def __init__(self, data: bytes, table: list[dict[str, Any]], blob: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.table, self.blob = table, blob
        self.made: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        kind = pid[0]
        if kind == "ghost":
            return Ghost(pid[1])
        if kind == "device":
            return _device(pid[1], pid[2])
        if pid[1] not in self.made:
            entry = self.table[pid[1]]
            self.made[pid[1]] = decode(self.blob(entry["array"])) if kind == "array" else self._tensor(entry)
        return self.made[pid[1]]

    def _tensor(self, entry: dict[str, Any]) -> torch.Tensor:
        if "blob" in entry:
            tensor = decode(self.blob(entry["blob"]))
        else:
            tensor = torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        tensor = tensor.to(_device(entry["device"], None))
        if entry["parameter"]:
            return torch.nn.Parameter(tensor, requires_grad=entry["grad"])
        return tensor.requires_grad_() if entry["grad"] else tensor


def _device(kind: str, index: int | None) -> torch.device:
    """The worker's own counterpart of a device of the kernel's."""
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        return torch.device("cpu")
    return torch.device(kind) if kind == "cpu" or index is None else torch.device(kind, 0)


def open_program(data: bytes, blob: Callable[[str], bytes]) -> Program:
    """A program as objects. Only workers (and the kernel's own probe) call this, and only with a kernel's bytes."""
    parts = decode(data)
    if parts.get("format") != FORMAT:
        raise CodecError("the program is of another version of depin-nb")
    env, opener, labels = _Opener(parts["graph"], parts["table"], blob).load()
    env.setdefault("__name__", "__main__")
    modules, optimizers, schedulers, scalers, tensors = labels
    roots = Roots(modules, optimizers, schedulers, scalers, tensors, tuple(parts["carried"]), bool(parts["grads"]))
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
    )
