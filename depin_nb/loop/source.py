"""What the leased loop iterates: drawn in the kernel from the user's own iterable, one unit an iteration, opened on the worker.

A `DataLoader` is drawn from its batch sampler (the user's shuffle, weights, seed), so a unit is a list of indices; `range` gives values;
any other iterable gives its items. `enumerate` and `zip` wrap other sources; a progress bar stays in the notebook and keeps ticking.
"""

from __future__ import annotations

import builtins
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..core.codec import can_encode, decode, encode
from ..core.errors import RefusedLoop
from .values import is_value


class Remote:
    """In the notebook half: a device-side value that lives on a worker. Using it says so."""

    __slots__ = ("_what",)

    def __init__(self, what: str = "a value") -> None:
        object.__setattr__(self, "_what", what)

    def __repr__(self) -> str:
        return f"<{self._what} of the leased loop: it stayed on a worker>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self!r} has no {name!r} here: use it inside the loop, or record what you need with .item() or .detach()")


def holds_remote(value: Any, depth: int = 0) -> bool:
    """Whether a Remote is in `value` or in a container there."""
    if isinstance(value, Remote):
        return True
    if depth > 4 or type(value) not in (list, tuple, dict, set):
        return False
    parts = list(value.values() if isinstance(value, dict) else value)
    return any(holds_remote(part, depth + 1) for part in (parts if len(parts) < 256 else parts[-16:]))


class Enumerate:
    """`enumerate(...)` around something leased: keeps its iterable in sight."""

    def __init__(self, iterable: Any, start: int = 0) -> None:
        self.iterable, self.start = iterable, start

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return enumerate(self.iterable, self.start)


class Zip:
    """`zip(...)` around something leased."""

    def __init__(self, *iterables: Any) -> None:
        self.iterables = iterables

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*self.iterables, strict=False)


def wrap(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in the leased loop's `for` for a call: enumerate and zip keep what they iterate."""
    if function is builtins.enumerate:
        return Enumerate(*args, **kwargs)
    if function is builtins.zip and not kwargs:
        return Zip(*args)
    return function(*args, **kwargs)


@dataclass(frozen=True)
class Opener:
    """The worker's side of a source: turns a unit's data into the item, with what `plain` says stays plain. Travels in the program."""

    kind: str  # loader | plain | items | enumerate | zip
    parts: tuple[Opener, ...] = ()
    start: int = 0
    dataset: Any = None
    collate: Any = None

    def open(self, data: Any, index: int, own: Callable[[Any], Any]) -> Any:
        """The item of iteration `index`; `own` marks device-side values."""
        if self.kind == "enumerate":
            return self.start + index, self.parts[0].open(data, index, own)
        if self.kind == "zip":
            return tuple(part.open(piece, index, own) for part, piece in zip(self.parts, data, strict=True))
        if self.kind == "loader":
            return own(self._fetch(data))
        return data if self.kind == "plain" else own(data)

    def _fetch(self, indices: Any) -> Any:
        if type(indices) is not list:  # a loader without automatic batching
            return self.collate(self.dataset[indices])
        many = getattr(self.dataset, "__getitems__", None)
        return self.collate(many(indices) if many else [self.dataset[i] for i in indices])

    def shown(self, data: Any, index: int) -> Any:
        """The same item as the notebook half sees it: plain where it is plain, a Remote where it isn't there."""
        if self.kind == "enumerate":
            return self.start + index, self.parts[0].shown(data, index)
        if self.kind == "zip":
            return tuple(part.shown(piece, index) for part, piece in zip(self.parts, data, strict=True))
        return data if self.kind == "plain" else Remote("the batch")


class Source:
    """The kernel's side: draws units. `length` is None when unknown; `bar` is the progress bar around it, if any."""

    def __init__(self, iterable: Any) -> None:
        self.bar: Any = None
        self.note = ""
        self.opener, self._draw, self.length = self._describe(iterable)
        self._peeked: list[tuple[Any, int]] = []
        self._ended = False

    def _describe(self, iterable: Any) -> tuple[Opener, Iterator[tuple[Any, int]], int | None]:
        if isinstance(iterable, Enumerate):
            opener, draw, length = self._describe(iterable.iterable)
            return Opener("enumerate", (opener,), iterable.start), draw, length
        if isinstance(iterable, Zip):
            return self._describe_zip(iterable)
        if _is_bar(iterable):
            if self.bar is not None:
                raise RefusedLoop("two progress bars around one loop can't both be kept")
            self.bar = iterable
            return self._describe(iterable.iterable)
        if isinstance(iterable, DataLoader) and type(iterable).__iter__ is DataLoader.__iter__:
            length = _length(iterable)
            if iterable.num_workers == 0 and not isinstance(iterable.dataset, IterableDataset):
                return Opener("loader", dataset=iterable.dataset, collate=iterable.collate_fn), _batches(iter(iterable)), length
            self.note = "the loader's own workers fetch the batches here; leases carry the samples"
            return Opener("items"), _items(iter(iterable)), length
        if isinstance(iterable, range):
            return Opener("plain"), ((value, 1) for value in iterable), len(iterable)
        if isinstance(iterable, (list, tuple)) and all(is_value(v) for v in iterable):
            return Opener("plain"), ((value, 1) for value in iterable), len(iterable)
        try:
            iterator = iter(iterable)
        except TypeError:
            raise RefusedLoop(f"the loop iterates a {type(iterable).__name__}, which isn't iterable", reason="not iterable") from None
        if isinstance(iterable, (itertools.count, itertools.cycle)):
            raise RefusedLoop("the loop's iterable never ends, so its length can't be planned", hint="Use `range(n)` or itertools.islice.")
        return Opener("items"), _items(iterator), _length(iterable)

    def _describe_zip(self, iterable: Zip) -> tuple[Opener, Iterator[tuple[Any, int]], int | None]:
        described = [self._describe(part) for part in iterable.iterables]
        openers, draws, lengths = zip(*described, strict=True)

        def draw() -> Iterator[tuple[Any, int]]:
            for pieces in zip(*draws, strict=False):
                yield [data for data, _ in pieces], max(samples for _, samples in pieces)

        known = [n for n in lengths if n is not None]
        return Opener("zip", tuple(openers)), draw(), min(known) if known else None

    # --- drawing -------------------------------------------------------------------------------------

    def peek(self) -> tuple[Any, int] | None:
        """The next unit without using it up; None when the loop would not run at all."""
        if not self._peeked and not self._ended:
            self._pull()
        return self._peeked[0] if self._peeked else None

    def take(self, count: int) -> list[tuple[Any, int]]:
        """Up to `count` further units `(data, samples)`; fewer mean that the iterable has ended."""
        while len(self._peeked) < count and not self._ended:
            self._pull()
        taken, self._peeked = self._peeked[:count], self._peeked[count:]
        return taken

    @property
    def ended(self) -> bool:
        return self._ended and not self._peeked

    def _pull(self) -> None:
        try:
            self._peeked.append(next(self._draw))
        except StopIteration:
            self._ended = True

    def watch_draw(self) -> None:
        """Draws one unit ahead and notes whether that moves a global generator."""
        self.peek()  # the first draw may seed a sampler: that is where local iteration does it too
        before = _generators()
        self._pull()
        if before != _generators():
            self.note = "drawing the next item uses the random generators, and is done ahead: random numbers differ from a local run"


def _generators() -> tuple[bytes, Any, bytes]:
    state: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), state[1].tobytes() + bytes(str(state[2]), "ascii")


def _is_bar(value: Any) -> bool:
    return any(base.__name__ == "tqdm" and base.__module__.startswith("tqdm") for base in type(value).__mro__) and hasattr(
        value, "iterable"
    )


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except TypeError:
        return None


def _batches(iterator: Any) -> Iterator[tuple[Any, int]]:
    """Index batches of a loader's own iterator (whose making drew the base seed, as a local loop does)."""
    while True:
        try:
            indices = iterator._next_index()
        except StopIteration:
            return
        if isinstance(indices, (list, tuple)):
            yield [_index(i) for i in indices], len(indices)
        else:
            yield _index(indices), 1


def _index(value: Any) -> Any:
    return value.item() if isinstance(value, (torch.Tensor, np.generic)) and value.ndim == 0 else value


def _items(iterator: Iterator[Any]) -> Iterator[tuple[Any, int]]:
    for item in iterator:
        if not can_encode(item):
            raise RefusedLoop(
                f"the loop iterates {type(item).__name__} objects, which can't be sent to a worker",
                hint="Iterate tensors, arrays, numbers, or lists and dicts of them.",
                reason="items can't travel",
            )
        yield item, _samples(item)


def _samples(item: Any) -> int:
    if isinstance(item, (torch.Tensor, np.ndarray)):
        return int(item.shape[0]) if item.ndim else 1
    if isinstance(item, dict):
        return max((_samples(v) for v in item.values()), default=1)
    if isinstance(item, (list, tuple)):
        return max((_samples(v) for v in item if isinstance(v, (torch.Tensor, np.ndarray))), default=1)
    return 1


def pack(data: Any) -> bytes:
    return encode(data)


def unpack(data: bytes) -> Any:
    return decode(data)
