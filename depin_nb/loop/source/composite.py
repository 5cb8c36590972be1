"""Draws made of draws: enumerate, zip, and the functions of itertools."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from .draws import Draw, Drawn
from .opener import Counted, Either, Row


class Counting(Draw):
    """`enumerate`."""

    def __init__(self, part: Draw, start: int) -> None:
        super().__init__(part)
        self.opener, self.length, self.endless, self.start = Counted(part.opener), part.length, part.endless, start

    def units(self) -> Iterator[Drawn]:
        for count, (data, samples) in enumerate(self.parts[0].stream(), self.start):
            yield [count, data], samples


class Zipping(Draw):
    """`zip`: ends with its shortest part."""

    def __init__(self, *parts: Draw) -> None:
        super().__init__(*parts)
        self.opener = Row(tuple(part.opener for part in parts))
        self.endless = all(part.endless for part in parts)
        finite = [part.length for part in parts if not part.endless]
        known = [n for n in finite if n is not None]
        self.length = min(known) if known and len(known) == len(finite) else None

    def units(self) -> Iterator[Drawn]:
        for pieces in zip(*(part.stream() for part in self.parts), strict=False):
            yield [data for data, _ in pieces], max((samples for _, samples in pieces), default=1)


class Slicing(Draw):
    """`islice`."""

    def __init__(self, part: Draw, *bounds: Any) -> None:
        super().__init__(part)
        self.opener, self.bounds = part.opener, bounds
        span = slice(*bounds)
        self.endless = part.endless and span.stop is None
        if part.length is not None:
            self.length = len(range(part.length)[span])
        elif part.endless and span.stop is not None:
            self.length = len(range(span.start or 0, span.stop, span.step or 1))

    def units(self) -> Iterator[Drawn]:
        return itertools.islice(self.parts[0].stream(), *self.bounds)


class Chaining(Draw):
    """`chain`: as in itertools, a part's iterator is made when its turn comes."""

    def __init__(self, *parts: Draw) -> None:
        super().__init__(*parts)
        self.opener = Either(tuple(part.opener for part in parts))
        self.endless = any(part.endless for part in parts)
        lengths = [part.length for part in parts if part.length is not None]
        self.length = sum(lengths) if len(lengths) == len(parts) else None
        self._at = -1
        self._ahead: Drawn | None = None

    def begin(self) -> None:
        """Nothing is begun before its turn."""

    def units(self) -> Iterator[Drawn]:
        for at, part in enumerate(self.parts):
            part.begin()
            self._at = at
            while True:
                try:
                    data, samples = self._take(part)
                except StopIteration:
                    break
                yield [at, data], samples

    def _take(self, part: Draw) -> Drawn:
        unit, self._ahead = self._ahead, None
        return part.pull() if unit is None else unit

    def calm(self) -> bool:
        """Also the seam has to be calm: where the next part begins, its sampler draws."""
        if self._at < 0:
            return self._begins_calmly(0)
        if not self.parts[self._at].calm():
            return False
        if self._ahead is None:
            try:
                self._ahead = self.parts[self._at].pull()
            except StopIteration:
                return self._begins_calmly(self._at + 1)
        return True

    def _begins_calmly(self, at: int) -> bool:
        return at >= len(self.parts) or (self.parts[at].length != 0 and self.parts[at].calm())


class Cycling(Draw):
    """`cycle`: goes over what the first pass gave again and again."""

    endless = True

    def __init__(self, part: Draw) -> None:
        super().__init__(part)
        self.opener = part.opener
        self._again = False

    def units(self) -> Iterator[Drawn]:
        saved = []
        for unit in self.parts[0].stream():
            saved.append(unit)
            yield unit
        self._again = True
        while saved:
            yield from saved

    def calm(self) -> bool:
        return self._again or super().calm()
