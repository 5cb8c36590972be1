"""The random number generators as they were before a loop was entered: a loop that isn't run must not have drawn from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


class Generators:
    """torch's, Python's and numpy's generators, and those that the loop's own loaders and samplers hold. `restore` puts them back."""

    def __init__(self, iterable: Any) -> None:
        self._torch, self._python, self._numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self._own = [(generator, generator.get_state()) for generator in {id(g): g for g in _held(iterable)}.values()]

    def restore(self) -> None:
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        for generator, state in self._own:
            generator.set_state(state)


def _held(value: Any, depth: int = 0) -> Iterator[torch.Generator]:
    """Generators of a loader, also inside `enumerate`, `zip` and a progress bar."""
    if isinstance(value, torch.Generator):
        yield value
        return
    if depth > 6 or isinstance(value, (torch.Tensor, np.ndarray, str, bytes, int, float, list, dict)):
        return
    names = ("generator", "sampler", "batch_sampler", "iterable")
    own = [getattr(value, name, None) for name in names if name in getattr(value, "__dict__", {})]
    parts = getattr(value, "iterables", None)
    for part in (*own, *(parts if isinstance(parts, (list, tuple)) else ())):
        if part is not None:
            yield from _held(part, depth + 1)
