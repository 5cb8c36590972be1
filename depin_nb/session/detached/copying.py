"""Copies of a notebook's names as bytes, between processes of the same user on the same machine: with every alias, nothing left out.

This is the one place beside the programs for workers that pickles, and it never opens anything but a file (mode 0600) that this user's own
kernel or detached process wrote into the state folder. What comes from workers goes through `core.codec` alone.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import torch
from torch.optim import Optimizer

from ...core.codec import decode, encode
from ...core.errors import CodecError
from ...loop.ship.local_modules import by_value, local_modules
from ...loop.source import Remote
from ...loop.whole.contents import kind_of

Number = Callable[[Any], int | None]


class Storages:
    """Tensors of several graphs, each storage once: views stay views."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        self.table: list[dict[str, Any]] = []
        self._tensors: dict[int, int] = {}
        self._storages: dict[tuple[str, int], int] = {}
        self._kept: list[Any] = []

    def add(self, tensor: torch.Tensor) -> int:
        if id(tensor) in self._tensors:
            return self._tensors[id(tensor)]
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage.data_ptr() or -id(tensor))
        if key not in self._storages:
            self._storages[key] = len(self.buffers)
            self.buffers.append(torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage))
        self._kept.append(tensor)
        self._tensors[id(tensor)] = len(self.table)
        self.table.append(
            {
                "storage": self._storages[key],
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "offset": tensor.storage_offset(),
                "shape": list(tensor.shape),
                "stride": list(tensor.stride()),
                "parameter": isinstance(tensor, torch.nn.Parameter),
                "grad": tensor.requires_grad and tensor.is_leaf,
                "device": str(tensor.device),
            }
        )
        return self._tensors[id(tensor)]


class Opened:
    """Storages as they were read."""

    def __init__(self, buffers: list[torch.Tensor], table: list[dict[str, Any]]) -> None:
        self._buffers, self._table = buffers, table
        self._moved: dict[int, torch.Tensor] = {}

    def tensor(self, index: int) -> torch.Tensor:
        entry = self._table[index]
        number = entry["storage"]
        if number not in self._moved:
            self._moved[number] = self._buffers[number].to(entry["device"])
        made = torch.empty(0, dtype=getattr(torch, entry["dtype"]), device=entry["device"])
        made.set_(self._moved[number].untyped_storage(), entry["offset"], entry["shape"], entry["stride"])
        if entry["parameter"]:
            return torch.nn.Parameter(made, requires_grad=entry["grad"])
        return made.requires_grad_() if entry["grad"] else made


class Writer(cloudpickle.Pickler):
    """One graph. `space` becomes `env` for the functions whose globals it is; objects that `number` knows are referred to by it."""

    def __init__(self, storages: Storages, *, space: dict[str, Any], env: dict[str, Any], number: Number = lambda value: None) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, protocol=5)
        self.globals_ref[id(space)] = env
        self.storages, self.number = storages, number

    def persistent_id(self, obj: Any) -> Any:
        if (number := self.number(obj)) is not None:
            return "anchor", number
        if kind_of(obj) == "tensor" and obj.device.type != "meta":
            return "tensor", self.storages.add(obj)
        if isinstance(obj, io.IOBase) and not isinstance(obj, (io.BytesIO, io.StringIO)):
            raise pickle.PicklingError("an open file")  # cloudpickle would read it and make a copy in memory
        if type(obj) is Remote:
            raise pickle.PicklingError("a value that stayed on a worker")
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Optimizer):  # its `__getstate__` drops attributes, and a scheduler's patch of `step` can't travel
            state = {k: v for k, v in vars(obj).items() if k != "step" and not k.endswith("_hooks")}
            return _bare, (type(obj),), state, None, None, _restore
        return super().reducer_override(obj)

    def graph(self, value: Any) -> torch.Tensor:
        """The value's bytes, as the codec takes long ones."""
        with by_value(local_modules()):  # the .py files beside the notebook travel with what uses them
            self.dump(value)
        return torch.frombuffer(bytearray(self.file.getvalue()), dtype=torch.uint8)


class Reader(pickle.Unpickler):
    """Opens a graph; `anchor` gives the object of a number."""

    def __init__(self, graph: torch.Tensor, opened: Opened, anchor: Callable[[int], Any]) -> None:
        super().__init__(io.BytesIO(graph.numpy().tobytes()))
        self._opened, self._anchor = opened, anchor
        self._made: dict[int, torch.Tensor] = {}

    def persistent_load(self, pid: Any) -> Any:
        kind, number = pid
        if kind == "anchor":
            return self._anchor(number)
        if number not in self._made:
            self._made[number] = self._opened.tensor(number)
        return self._made[number]


def _bare(kind: Any) -> Any:
    return kind.__new__(kind)


def _restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    Optimizer.__setstate__(optimizer, state)


def pack(storages: Storages, graphs: dict[str, torch.Tensor], **more: Any) -> bytes:
    """Graphs and their tensors as one message; `more`: plain values beside them."""
    return encode({"buffers": storages.buffers, "table": storages.table, "graphs": graphs, "more": more})


def unpack(data: bytes) -> tuple[Opened, dict[str, torch.Tensor], dict[str, Any]]:
    """Raises CodecError for bytes that aren't whole."""
    message = decode(data)
    if type(message) is not dict or set(message) != {"buffers", "table", "graphs", "more"}:
        raise CodecError("not a copy of names")
    return Opened(message["buffers"], message["table"]), message["graphs"], message["more"]
