"""The second pass over the graph: writes it, with tensors, arrays and ghosts by reference to a table, and contents as blobs."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import torch

from ...core.codec import TORCH_DTYPES, encode
from ...core.errors import ShipError
from .pickling import Found, Graph, Scope
from .storages import Shared, shared_storages


class Shipper(Graph):
    """One program's graph. `table`: an entry for each tensor and array; `blobs`: contents by their sha256."""

    def __init__(self, file: io.BytesIO, scope: Scope, found: Found, mutable: set[int]) -> None:
        super().__init__(file, scope)
        self.mutable = mutable  # ids of tensors whose contents travel as State
        self.kept: list[Any] = []
        self.numbers: dict[int, int] = {}  # of tensors and arrays, by id
        self.table: list[dict[str, Any]] = []
        self.blobs: dict[str, bytes] = {}
        self._shares: dict[int, tuple[int, int]] = {}  # id of a tensor -> its base in the table, where that begins
        for group in shared_storages(found.tensors.values()):
            if not group.is_wasteful or any(id(t) in mutable for t in group.members):
                self._share(group)

    def _share(self, group: Shared) -> None:
        base: dict[str, Any] = {"base": group.last - group.first, "dtype": _dtype(group.members[0])}
        base["device"] = group.members[0].device.type
        if not all(id(t) in self.mutable for t in group.members):
            base["blob"] = self._blob(encode(group.contents()))
        for tensor in group.members:
            self._shares[id(tensor)] = len(self.table), group.first
        self.table.append(base)

    def _blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def array(self, array: np.ndarray) -> int:
        if id(array) not in self.numbers:
            self.kept.append(array)
            self.numbers[id(array)] = len(self.table)
            self.table.append({"array": self._blob(encode(array))})
        return self.numbers[id(array)]

    def tensor(self, tensor: torch.Tensor) -> int:
        if id(tensor) in self.numbers:
            return self.numbers[id(tensor)]
        self.kept.append(tensor)
        index = self.numbers[id(tensor)] = len(self.table)
        entry: dict[str, Any] = {
            "dtype": _dtype(tensor),
            "shape": list(tensor.shape),
            "grad": tensor.requires_grad and tensor.is_leaf,
            "parameter": isinstance(tensor, torch.nn.Parameter),
            "device": tensor.device.type,
        }
        self.table.append(entry)
        if id(tensor) in self._shares:
            base, first = self._shares[id(tensor)]
            entry.update(of=base, offset=tensor.storage_offset() - first, stride=list(tensor.stride()))
            return index
        if id(tensor) in self.mutable:
            return index
        value = tensor.detach()
        if value.layout is torch.sparse_coo:
            value = value.coalesce()
            entry["sparse"] = self._blob(encode([value.indices(), value.values()]))
            return index
        if value.layout is not torch.strided:
            raise ShipError(f"a tensor of layout {value.layout} can't be sent", kind="tensor", hint="Keep it dense between loops.")
        entry["blob"] = self._blob(encode(value))
        return index


def _dtype(tensor: torch.Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in TORCH_DTYPES:
        raise ShipError(f"a tensor of dtype {tensor.dtype} can't be sent", kind="tensor", hint="Convert it before the loop.")
    return name
