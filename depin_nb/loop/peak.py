"""How much memory tensors take at most while something runs: activations, gradients and what the optimizer makes."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the storages that operations make, each as long as it lives.

    `peak_bytes`: the most at once. What was there before isn't in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = self._live_bytes = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(storage) for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            self._count(storage, before)
        return made

    def _count(self, storage: Any, before: set[int]) -> None:
        if id(storage) in before or storage in self._known:
            return
        nbytes = storage.nbytes()
        self._known.add(storage)
        self._live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._freed, nbytes).atexit = False

    def _freed(self, nbytes: int) -> None:
        self._live_bytes -= nbytes


def _storages(values: Any) -> list[Any]:
    """Of the tensors that have one: wrappers and sparse ones don't."""
    found = []
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            with suppress(RuntimeError, NotImplementedError):
                found.append(value.untyped_storage())
    return found
