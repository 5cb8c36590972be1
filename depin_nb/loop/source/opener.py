"""The worker's side of a source: turns a unit's data into the loop's item. Openers travel in the program and are the same on both sides.

`open(data, index, own)` gives the item of iteration `index` on a worker (`own` marks what is device-side there); `shown(data, index)`
gives the same item as the notebook half sees it: plain where it is plain, the user's own object where the notebook has it, else a Remote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..generators import advance
from ..values import is_value
from .forms import Forms
from .remote import Remote

Own = Callable[[Any], Any]


class Opener:
    """Base of all openers."""

    def open(self, data: Any, index: int, own: Own) -> Any:
        raise NotImplementedError

    def shown(self, data: Any, index: int) -> Any:
        raise NotImplementedError

    def may_be_last(self, data: Any) -> bool:
        """Whether `data` may be the last unit's without anybody knowing yet. Only the outermost opener tells."""
        return False


@dataclass(frozen=True)
class Plain(Opener):
    """The data is the item: numbers, text, arrays and containers of them."""

    def open(self, data: Any, index: int, own: Own) -> Any:
        return data

    def shown(self, data: Any, index: int) -> Any:
        return data


@dataclass(frozen=True)
class Item(Opener):
    """The data holds the item itself, drawn in the notebook."""

    forms: Forms

    def open(self, data: Any, index: int, own: Own) -> Any:
        value = self.forms.opened(data)
        return value if is_value(value) else own(value)

    def shown(self, data: Any, index: int) -> Any:
        value = self.forms.opened(data)
        return value if is_value(value) else Remote.named("the batch")


@dataclass(frozen=True)
class Element(Opener):
    """The data is an index into a sequence that both sides hold: a list, a tensor, an array."""

    sequence: Any

    def open(self, data: Any, index: int, own: Own) -> Any:
        return self.sequence[data]

    def shown(self, data: Any, index: int) -> Any:
        return self.sequence[data]


@dataclass(frozen=True)
class Sample(Opener):
    """The data is an index into a map-style dataset."""

    dataset: Any

    def open(self, data: Any, index: int, own: Own) -> Any:
        return own(self.dataset[data])

    def shown(self, data: Any, index: int) -> Any:
        return Remote.named("the sample")


@dataclass(frozen=True)
class Batch(Opener):
    """The data is what a loader's sampler gave: `auto` says that it is a batch of indices (`batch_size` isn't None)."""

    dataset: Any
    collate: Any
    auto: bool

    def open(self, data: Any, index: int, own: Own) -> Any:
        return own(self.fetch(data))

    def fetch(self, data: Any) -> Any:
        """As torch's own fetcher for map-style datasets does it."""
        if not self.auto:
            return self.collate(self.dataset[data])
        many = getattr(self.dataset, "__getitems__", None)
        return self.collate(many(data) if many else [self.dataset[i] for i in data])

    def shown(self, data: Any, index: int) -> Any:
        return Remote.named("the batch")


@dataclass(frozen=True)
class Counted(Opener):
    """`enumerate`: the data is (count, the inner data)."""

    part: Opener

    def open(self, data: Any, index: int, own: Own) -> Any:
        return data[0], self.part.open(data[1], index, own)

    def shown(self, data: Any, index: int) -> Any:
        return data[0], self.part.shown(data[1], index)


@dataclass(frozen=True)
class Row(Opener):
    """`zip` and the like: a tuple, each part with an opener of its own."""

    parts: tuple[Opener, ...]

    def open(self, data: Any, index: int, own: Own) -> Any:
        return tuple(part.open(piece, index, own) for part, piece in zip(self.parts, data, strict=True))

    def shown(self, data: Any, index: int) -> Any:
        return tuple(part.shown(piece, index) for part, piece in zip(self.parts, data, strict=True))


@dataclass(frozen=True)
class Either(Opener):
    """`chain`: the data is (which part, its data)."""

    parts: tuple[Opener, ...]

    def open(self, data: Any, index: int, own: Own) -> Any:
        return self.parts[data[0]].open(data[1], index, own)

    def shown(self, data: Any, index: int) -> Any:
        return self.parts[data[0]].shown(data[1], index)


@dataclass(frozen=True)
class Framed(Opener):
    """The outermost one. The data is [inner data, generators, open end]: where the draw left the random number generators that it moved
    (None: it moved none, or nobody goes on from them), and whether this may be the last unit without anybody knowing yet."""

    part: Opener = field(default_factory=Plain)

    def open(self, data: Any, index: int, own: Own) -> Any:
        if data[1] is not None:
            advance(data[1])
        return self.part.open(data[0], index, own)

    def shown(self, data: Any, index: int) -> Any:
        return self.part.shown(data[0], index)

    @property
    def dataset(self) -> Any:
        """What the items come from on a worker: the first dataset or sequence in it, None where the items themselves travel."""
        return _data_of(self.part)

    def may_be_last(self, data: Any) -> bool:
        return data is not None and bool(data[2])


def _data_of(opener: Opener) -> Any:
    if isinstance(opener, (Batch, Sample)):
        return opener.dataset
    if isinstance(opener, Element):
        return opener.sequence
    parts = (opener.part,) if isinstance(opener, Counted) else getattr(opener, "parts", ())
    return next((data for data in map(_data_of, parts) if data is not None), None)
