"""The random number generators of torch, Python and numpy: read, compared, moved and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.codec import decode, encode

Moved = dict[str, Any]  # codec data: of those of `torch`, `python`, `numpy` that moved, where they stand


@dataclass(frozen=True)
class Snapshot:
    """Where the three global generators stand."""

    torch: torch.Tensor
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> Snapshot:
        return cls(torch.get_rng_state(), random.getstate(), np.random.get_state())

    def restore(self) -> None:
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def moved(self) -> Moved | None:
        """Those generators that stand elsewhere now, and where; None when none does. A torch state takes 5 kB."""
        now, moved = Snapshot.now(), Moved()
        if not torch.equal(self.torch, now.torch):
            moved["torch"] = now.torch
        if self.python != now.python:
            moved["python"] = now.python
        if self.numpy[2:] != now.numpy[2:] or not np.array_equal(self.numpy[1], now.numpy[1]):
            moved["numpy"] = tuple(now.numpy)
        return moved or None


def advance(moved: Moved) -> None:
    """Puts the generators that `Snapshot.moved` named where it says; the others stay."""
    if "torch" in moved:
        torch.set_rng_state(moved["torch"])
    if "python" in moved:
        version, numbers, gauss = moved["python"]
        random.setstate((version, tuple(numbers), gauss))
    if "numpy" in moved:
        np.random.set_state(tuple(moved["numpy"]))


class Generators:
    """The global generators, and those that the loop's own loaders and samplers hold, as they were before a loop was entered.

    `restore` puts them back: a loop that isn't run must not have drawn from them.
    """

    def __init__(self, iterable: Any) -> None:
        self._globals = Snapshot.now()
        self._own = [(generator, generator.get_state()) for generator in held(iterable)]

    def restore(self) -> None:
        self._globals.restore()
        for generator, state in self._own:
            generator.set_state(state)

    def to_bytes(self) -> bytes:
        """As codec bytes, for a resume (about 10 kB)."""
        kept = self._globals
        own = [state for _, state in self._own]
        return encode({"torch": kept.torch, "python": kept.python, "numpy": tuple(kept.numpy), "own": own})

    def follow(self, data: bytes) -> None:
        """Moves the generators to where those of a killed kernel stood (`to_bytes`); `restore` still goes back. Empty data: no move."""
        if not data:
            return
        then = decode(data)
        advance({name: then[name] for name in ("torch", "python", "numpy")})
        for (generator, _), state in zip(self._own, then["own"], strict=False):
            generator.set_state(state)


def held(iterable: Any) -> list[torch.Generator]:
    """Generators of the user's own that loaders and samplers in `iterable` draw from, each once."""
    return list({id(g): g for g in _held(iterable, 0) if g is not torch.default_generator}.values())


def _held(value: Any, depth: int) -> Iterator[torch.Generator]:
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
