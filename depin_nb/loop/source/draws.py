"""The kernel's side of a source: a tree of draws, made like the user's iterable, that gives each iteration's data and its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..generators import Snapshot
from .foresee import Foresight, foresee
from .forms import Forms
from .opener import Element, Item, Opener, Plain

Drawn = tuple[Any, int]  # a unit's data, and how many samples it weighs


@dataclass
class Drawing:
    """What the draws of one source share. `exact`: one worker does the loop, so what can't be repeated elsewhere is fetched here."""

    way: str = "auto"
    exact: bool = False
    leaves: bool = True  # the body may leave the loop early
    elsewhere: bool = False  # a worker may be on another machine: files of this one aren't there
    unit: int = 0  # the unit that is being drawn
    passed: int = 0  # units that the notebook half has gone through
    watched: bool = True  # whether a draw that nothing is known of is compared with the generators before it (0.1 ms)
    moved: bool = False  # such a draw moved them
    notes: list[str] = field(default_factory=list)
    lost: bool = False  # items that several workers' share was drawn ahead for are gone when the body leaves early
    solo: str = ""  # why one worker must do it, as far as the iterable tells
    bars: list[Any] = field(default_factory=list)
    stand_ins: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # id of a dataset -> it, and its reduction in the program
    returned: dict[int, list[Any]] = field(default_factory=dict)  # id of a live iterator -> items drawn from it that were not used

    def saw(self, before: Snapshot) -> bool:
        """Whether the generators have moved since `before`."""
        moved = before.moved() is not None
        self.moved |= moved
        return moved

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class Draw:
    """A part of a source. `length` is None where unknown. `begin` does what making the iterator does; `units` are drawn after it."""

    opener: Opener
    length: int | None = None
    endless = False

    def __init__(self, *parts: Draw) -> None:
        self.parts = parts
        self._units: Iterator[Drawn] | None = None

    def begin(self) -> None:
        for part in self.parts:
            part.begin()

    def units(self) -> Iterator[Drawn]:
        raise NotImplementedError

    def pull(self) -> Drawn:
        """The next unit. Raises StopIteration at the end, and whatever the user's iterable raises."""
        if self._units is None:
            self._units = self.units()
        return next(self._units)

    def stream(self) -> Iterator[Drawn]:
        while True:
            try:
                unit = self.pull()
            except StopIteration:
                return
            yield unit

    def calm(self) -> bool:
        """Whether the next pull is known to leave the global random number generators alone."""
        return all(part.calm() for part in self.parts)

    def must_be_here(self) -> bool:
        """Whether exactness with one worker needs the samples to be fetched in the notebook. Asked after the first pull."""
        return any(part.must_be_here() for part in self.parts)

    def finish(self, consumed: int, done: bool) -> None:
        """The loop is over: live iterators of the user's get back what was drawn from them and not consumed."""
        for part in self.parts:
            part.finish(consumed, done)


class Values(Draw):
    """Plain values, from an iterable that draws nothing random: ranges, lists of numbers, `count`."""

    opener = Plain()

    def __init__(self, values: Iterable[Any], length: int | None, *, endless: bool = False) -> None:
        super().__init__()
        self.values, self.length, self.endless = values, length, endless

    def units(self) -> Iterator[Drawn]:
        return ((value, 1) for value in self.values)


class Indexed(Draw):
    """Elements of a sequence that both sides hold, by index: it travels once, by content."""

    def __init__(self, sequence: Any, indices: Iterable[int], length: int, *, opener: Opener | None = None, batched: bool = True) -> None:
        super().__init__()
        self.opener = opener or Element(sequence)
        self.sequence, self.indices, self.length, self.batched = sequence, indices, length, batched

    def units(self) -> Iterator[Drawn]:
        for index in self.indices:
            yield index, samples_of(self.sequence[index]) if self.batched else 1


class Items(Draw):
    """Items of any other iterable: drawn here, and sent. `make` gives the iterator."""

    def __init__(self, make: Callable[[], Iterator[Any]], length: int | None, drawing: Drawing, *, stepwise: bool = False) -> None:
        super().__init__()
        self.forms = Forms()
        self.opener, self.length = Item(self.forms), length
        self._make, self._drawing, self._stepwise = make, drawing, stepwise
        self._drawn, self._still = 0, False
        self._foreseen: dict[int, Foresight] = {}
        self.iterator: Iterator[Any] = iter(())

    def begin(self) -> None:
        self.iterator = self._make()

    def units(self) -> Iterator[Drawn]:
        while True:
            known = self._drawn > 0 and self._foresee() is Foresight.NEVER
            before = Snapshot.now() if self._drawing.watched and not known else None
            try:
                item = next(self.iterator)
            except StopIteration:
                return
            if before is not None:
                self._still = not self._drawing.saw(before) and self._drawn > 0
            self._drawn += 1
            yield self.forms.closed(item), samples_of(item)

    def calm(self) -> bool:
        """The first draw may do anything; the second one, watched, decides where nothing tells."""
        if self._stepwise:
            return False
        foreseen = self._foresee()
        if foreseen is Foresight.UNKNOWN:
            return self._still
        return foreseen is Foresight.NEVER and self._drawn > 0

    def _foresee(self) -> Foresight:
        frame = getattr(self.iterator, "gi_frame", None)
        place = -1 if frame is None else frame.f_lasti
        if place not in self._foreseen or self._drawn <= 1:
            self._foreseen[place] = foresee(self.iterator)
        return self._foreseen[place]


def samples_of(item: Any) -> int:
    """How many samples a batch has: the length of its tensors' first dimension."""
    if isinstance(item, (torch.Tensor, np.ndarray)):
        return int(item.shape[0]) if item.ndim else 1
    if isinstance(item, dict):
        return max((samples_of(v) for v in item.values()), default=1)
    if isinstance(item, (list, tuple)):
        return max((samples_of(v) for v in item if isinstance(v, (torch.Tensor, np.ndarray))), default=1)
    return 1
