"""Tensors that share memory: what changes one of them changes the others, so they arrive sharing it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

_WASTE = 4


@dataclass(frozen=True)
class Shared:
    """A stretch of one storage that several tensors overlap in: elements `first` to `last` (exclusive) of it."""

    members: tuple[torch.Tensor, ...]
    first: int
    last: int

    @property
    def is_wasteful(self) -> bool:
        """Whether the stretch is far more than its members, as with a row and a column of a large table: only training ties those."""
        return self.last - self.first > _WASTE * sum(t.numel() for t in self.members)

    def contents(self) -> torch.Tensor:
        """A copy of the stretch alone, however large its storage is."""
        one = self.members[0].detach()
        return torch.as_strided(one, (self.last - self.first,), (1,), self.first).to("cpu", copy=True)


def shared_storages(tensors: Iterable[torch.Tensor]) -> list[Shared]:
    """Groups of tensors that overlap. Tensors that only lie beside each other in one storage (`X.split(8)`) are no group."""
    by_storage: dict[tuple[int, torch.dtype], list[tuple[int, int, torch.Tensor]]] = {}
    for tensor in tensors:
        if tensor.layout is not torch.strided or not tensor.numel() or tensor.device.type == "meta":
            continue
        first = int(tensor.storage_offset())
        last = first + sum((int(n) - 1) * int(step) for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        by_storage.setdefault((tensor.untyped_storage()._cdata, tensor.dtype), []).append((first, last, tensor))
    groups: list[Shared] = []
    for spans in by_storage.values():
        if len(spans) < 2:
            continue
        spans.sort(key=lambda span: span[:2])
        together: list[torch.Tensor] = []
        begin = end = -1
        for first, last, tensor in spans:
            if first >= end:
                groups.append(Shared(tuple(together), begin, end))
                together, begin = [], first
            together.append(tensor)
            end = max(end, last)
        groups.append(Shared(tuple(together), begin, end))
    return [group for group in groups if len(group.members) > 1]
