"""What leaves the machine with a program: each name with its kind and bytes, what was withheld and what stays."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from ..values import Ghost


@dataclass(frozen=True)
class Item:
    """One name. `nbytes` counts each thing once, under the first name that holds it; what stays or is withheld has 0."""

    name: str
    kind: str
    nbytes: int


@dataclass(frozen=True)
class Manifest:
    """`items`: largest first. `withheld`: secrets by the user's own names. `packages`: {distribution: version} that a worker needs."""

    items: tuple[Item, ...] = ()
    withheld: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in self.items)

    def largest(self, count: int) -> tuple[tuple[Item, ...], Item | None]:
        """The `count` largest, and the others summed up in one (None without others)."""
        shown, others = self.items[:count], self.items[count:]
        if len(others) < 2:
            return self.items[: count + 1], None
        return shown, Item(f"{len(others)} more", ", ".join(sorted({o.kind for o in others})[:4]), sum(o.nbytes for o in others))


def kind_of(value: Any, modules: Iterable[str] = ()) -> str:
    """A word for people."""
    for kind, word in (
        (Ghost, "stays here"),
        (torch.nn.Module, "model"),
        (Optimizer, "optimizer"),
        (LRScheduler, "scheduler"),
        (GradScaler, "scaler"),
        (Dataset, "dataset"),
        (DataLoader, "loader"),
        (torch.Tensor, "tensor"),
        (np.ndarray, "array"),
        (type, "class"),
        ((types.FunctionType, types.MethodType, types.BuiltinFunctionType), "function"),
        (bool, "flag"),
        ((int, float, complex, np.generic), "number"),
        ((str, bytes), "text"),
        ((list, tuple, set, frozenset), "list"),
        (dict, "dict"),
        (torch.device, "device"),
        (type(None), "nothing yet"),
    ):
        if isinstance(value, kind):
            return word
    if isinstance(value, types.ModuleType):
        return "module, by value" if value.__name__ in modules else "module, by name"
    return type(value).__name__


def sorted_items(items: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: (-item.nbytes, item.name)))
