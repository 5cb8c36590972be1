"""Iterators that the user holds: what is drawn from them and not used goes back, so that they go on where local iteration would."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ...core.errors import RefusedLoop
from .draws import Draw, Drawing, Drawn, Items
from .opener import Batch, Plain, Row
from .wrappers import Fetching


class LiveItems(Items):
    """Items of an iterator of the user's."""

    def __init__(self, iterator: Iterator[Any], length: int | None, drawing: Drawing, *, stepwise: bool) -> None:
        super().__init__(lambda: self._again(iterator), length, drawing, stepwise=stepwise)
        self._user = iterator

    def _again(self, iterator: Iterator[Any]) -> Iterator[Any]:
        before = self._drawing.returned.pop(id(iterator), [])
        return itertools.chain(before, iterator) if before else iterator

    def give_back(self, pending: list[Any], used: int) -> Any:
        """An iterator that goes on with the items that were drawn and not used. They are kept for another draw of the same source."""
        items = [self.opener.open(data, 0, lambda value: value) for data in pending]
        if items:
            self._drawing.returned[id(self._user)] = items
            return itertools.chain(items, self._user)
        return self._user


class Live(Draw):
    """Keeps in mind which unit took what from the iterator behind `leaf`, and looks one ahead where that is harmless."""

    def __init__(self, leaf: Any, drawing: Drawing) -> None:
        super().__init__(leaf)
        self.leaf, self.opener, self.length, self._drawing = leaf, leaf.opener, leaf.length, drawing
        self._history: deque[tuple[int, Any]] = deque()
        self._ahead: deque[Drawn] = deque()
        self._used = 0
        self.ended = False
        self.iterator: Any = None

    def units(self) -> Iterator[Drawn]:
        while True:
            if self._ahead:
                unit = self._ahead.popleft()
            else:
                try:
                    unit = self.leaf.pull()
                except StopIteration:
                    self.ended = True
                    return
            while self._history and self._history[0][0] < self._drawing.passed:
                self._history.popleft()
            self._history.append((self._drawing.unit, unit[0]))
            self._used += 1
            yield unit

    def follows(self, before: Live) -> bool:
        """Whether its units can be opened as those of the iterator before it; items then share one table of types."""
        if isinstance(self.leaf, LiveItems) and isinstance(before.leaf, LiveItems):
            self.leaf.forms, self.leaf.opener, self.opener = before.leaf.forms, before.opener, before.opener
            return True
        mine, theirs = self.opener, before.opener
        if not isinstance(mine, Batch) or not isinstance(theirs, Batch):
            return False
        return mine.dataset is theirs.dataset and mine.collate is theirs.collate and mine.auto == theirs.auto

    def calm(self) -> bool:
        return bool(self._ahead) or self.ended or bool(self.leaf.calm())

    def has_more(self) -> bool:
        """Looks one unit ahead. Only for a draw that is calm."""
        if not self._ahead and not self.ended:
            try:
                self._ahead.append(self.leaf.pull())
            except StopIteration:
                self.ended = True
        return not self.ended or bool(self._ahead)

    def finish(self, consumed: int, done: bool) -> None:
        left = [] if done else [data for unit, data in self._history if unit >= consumed]
        self.iterator = self.leaf.give_back([*left, *(data for data, _ in self._ahead)], self._used - len(left))
        self._history.clear()
        self._ahead.clear()


class FetchingDraw(Draw):
    """`Fetching`: the loop's own iterable, and beside it an iterator that may be renewed when it is exhausted."""

    def __init__(self, part: Draw, live: Live, fetching: Fetching, describe: Callable[[Any], Draw]) -> None:
        super().__init__(part, live)
        self.opener = Row((part.opener, live.opener, *([Plain()] if fetching.flagged else [])))
        self.live, self._fetching, self._describe = live, fetching, describe
        self.length = part.length if fetching.renew is not None else _least(part, live)
        self.endless = part.endless and fetching.renew is not None

    def units(self) -> Iterator[Drawn]:
        for first, samples in self.parts[0].stream():
            renewed = False
            try:
                data, more = self.live.pull()
            except StopIteration:
                if self._fetching.renew is None:
                    self._fetching.end(self.parts[0].opener.open, first)
                    return
                self._renew()
                renewed = True
                try:
                    data, more = self.live.pull()
                except StopIteration:
                    self._fetching.end(self.parts[0].opener.open, first)
                    return
            yield [first, data, *([renewed] if self._fetching.flagged else [])], max(samples, more)

    def calm(self) -> bool:
        if not self.parts[0].calm() or not self.live.calm():
            return False
        return self._fetching.renew is None or self.live.has_more()

    def _renew(self) -> None:
        assert self._fetching.renew is not None
        iterator = self._fetching.renew()
        self._fetching.iterator = iterator
        live = self._describe(iterator)
        if not isinstance(live, Live) or not live.follows(self.live):
            raise RefusedLoop(
                "the body's iterator goes on with another kind of iterable than it began with",
                reason="another iterator",
                hint="Renew it from the same loader, or fetch the samples before the loop.",
            )
        live.begin()
        self.live, self.parts = live, (self.parts[0], live)

    def finish(self, consumed: int, done: bool) -> None:
        super().finish(consumed, done)
        self._fetching.iterator = self.live.iterator


def _least(*parts: Draw) -> int | None:
    known = [part.length for part in parts if part.length is not None]
    finite = [part for part in parts if not part.endless]
    return min(known) if known and len(known) == len(finite) else None
