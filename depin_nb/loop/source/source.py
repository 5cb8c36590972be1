"""The kernel's side of a leased loop's iterable: draws units, ahead where that changes nothing, else in step with the loop."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

import torch

from ...core.errors import RefusedLoop
from ..generators import Generators, Moved, Snapshot, held
from .describe import describe
from .draws import Draw, Drawing, Drawn
from .opener import Framed
from .policy import check_way


class Source:
    """Units of one loop entry, in order. `length` is None where unknown; `bars`: the progress bars around it, the outermost first.

    With one worker (`settle(solo=True)`) the worker's random number generators go on from the kernel's, so a draw that moves them waits:
    then `blocked` is true, and `step` makes it once every earlier iteration is replayed and the generators stand where those left them.
    """

    def __init__(
        self, iterable: Any, *, before: Generators | None = None, leaves: bool = True, way: str = "auto", elsewhere: bool = False
    ) -> None:
        self._elsewhere = elsewhere
        self._iterable, self._leaves, self._way = iterable, leaves, check_way(way)
        self._before = before or Generators(iterable)
        self._returned: dict[int, list[Any]] = {}
        self._in_step = self._settled = False
        self._ticking: list[tuple[Any, Any]] = []
        self._describe(exact=False)

    def _describe(self, *, exact: bool) -> None:
        self._drawing = Drawing(self._way, exact, self._leaves, self._elsewhere, returned=self._returned)
        self._draw: Draw = describe(self._iterable, self._drawing)
        if self._draw.endless and not self._leaves:
            raise RefusedLoop(
                "the loop's iterable never ends, and nothing in its body leaves it",
                hint="Use `range(n)` or itertools.islice, or `break` when it is enough.",
                reason="endless",
            )
        self.opener, self.length = Framed(self._draw.opener), self._draw.length
        self._units: deque[tuple[Drawn, Moved | None]] = deque()
        self._ended = False
        self._error: Exception | None = None
        self.end_state: Snapshot | None = None  # where a last draw in step left the generators
        self._draw.begin()
        self._own = [(g, deque([(-1, g.get_state())])) for g in held(self._iterable)]

    @property
    def note(self) -> str:
        return "; ".join(self._drawing.notes)

    @property
    def solo(self) -> str:
        """Why one worker must do the loop, "" where the iterable gives no reason."""
        return self._drawing.solo

    @property
    def bars(self) -> list[Any]:
        return self._drawing.bars

    @property
    def stand_ins(self) -> dict[int, tuple[Any, Any]]:
        """Datasets that don't travel whole, for `standing_in` while the program is pickled."""
        return self._drawing.stand_ins

    def settle(self, *, solo: bool) -> None:
        """The strategy is chosen. With one worker, samples that only the notebook can fetch exactly are fetched here from now on."""
        if self._settled:
            return
        self._settled = True
        if solo and self._drawing.unit <= 1 and self._draw.must_be_here():
            self._draw.finish(0, done=False)
            self._before.restore()
            self._describe(exact=True)
            self.peek()
        self._in_step = self._drawing.watched = solo
        if not solo and self._drawing.lost:
            self._drawing.note("items are drawn ahead: those behind an early exit are gone from the iterator")
        if solo and self._units and self.blocked_next:
            self._drawing.note("drawing an item uses the random generators, so each waits for the iteration before it")

    # --- drawing -------------------------------------------------------------------------------------

    def peek(self) -> tuple[Any, int] | None:
        """The next unit `(data, samples)` without using it up; None when there is none, or none can be drawn yet."""
        self._fill(1)
        if not self._units:
            self._raise()
            return None
        (data, samples), moved = self._units[0]
        return [data, moved, False], samples

    def take(self, count: int) -> list[tuple[Any, int]]:
        """Up to `count` further units; fewer mean that the iterable has ended or that the next draw has to wait."""
        self._fill(count)
        taken = [self._units.popleft() for _ in range(min(count, len(self._units)))]
        open_end = not self._units and not self._ended and self.blocked_next
        last = len(taken) - 1
        return [([data, moved, open_end and i == last], samples) for i, ((data, samples), moved) in enumerate(taken)]

    def step(self) -> None:
        """Draws one unit with the generators as they stand, which are where all earlier iterations left them."""
        before = Snapshot.now()
        self._pull()
        if self._ended:
            self.end_state = Snapshot.now()
        elif self._units:
            unit, _ = self._units.pop()
            self._units.append((unit, before.moved()))

    @property
    def ended(self) -> bool:
        """Whether no unit is left and no further one will come. Doesn't draw."""
        return self._ended and not self._units

    def over(self) -> bool:
        """The same, after looking one unit ahead where that changes nothing."""
        self._fill(1)
        return self.ended

    @property
    def blocked(self) -> bool:
        """Whether the next unit can only be drawn by `step`."""
        return not self._units and not self._ended and self.blocked_next

    @property
    def blocked_next(self) -> bool:
        return self._in_step and not self._draw.calm()

    def failed(self) -> None:
        """Raises what the user's iterable raised, if it did: due once every unit before it is replayed."""
        if not self._units:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _fill(self, count: int) -> None:
        while len(self._units) < count and not self._ended and not self.blocked_next:
            number, self._drawing.moved = self._drawing.unit, False
            self._pull()
            if self._in_step and self._drawing.moved:
                warnings.warn(
                    f"drawing item {number} of the loop used the random generators ahead of the iterations before it: "
                    "random numbers differ from a local run from there on",
                    stacklevel=2,
                )

    def _pull(self) -> None:
        try:
            unit = self._draw.pull()
        except StopIteration:
            self._ended = True
            return
        except Exception as error:
            self._ended, self._error = True, error
            return
        for generator, states in self._own:
            state = generator.get_state()
            if not torch.equal(state, states[-1][1]):
                states.append((self._drawing.unit, state))
            while len(states) > 1 and states[1][0] < self._drawing.passed:
                states.popleft()
        self._units.append((unit, None))
        self._drawing.unit += 1

    # --- the end ---------------------------------------------------------------------------------------

    def passed(self, count: int) -> None:
        """The notebook half has begun `count` iterations."""
        self._drawing.passed = count

    def finish(self, consumed: int, *, done: bool) -> None:
        """The loop is left after `consumed` iterations; `done`: it ran to its end. What was drawn beyond counts as not drawn."""
        self._draw.finish(consumed, done)
        if not done:
            for generator, states in self._own:
                kept = [state for unit, state in states if unit < consumed]
                generator.set_state(kept[-1])
        for bar, iterable in self._ticking:
            bar.iterable = iterable
        self._ticking.clear()

    def ticking(self, items: Any) -> Any:
        """`items` behind the loop's progress bars, which tick as they are iterated."""
        for bar in reversed(self.bars):
            self._ticking.append((bar, bar.iterable))
            bar.iterable = items
            items = iter(bar)
        return items
