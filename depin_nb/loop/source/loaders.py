"""DataLoaders: their samplers are drawn here, their samples are fetched on the workers, unless the samples have to travel."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from ...core.codec import can_encode
from ...core.errors import RefusedLoop
from ..generators import Snapshot
from .draws import Draw, Drawing, Drawn
from .foresee import Foresight, is_known_sampler, of_function, of_sampling
from .opener import Batch

#: Loaders with persistent workers that have been iterated here: torch draws their base seed only the first time.
_begun: weakref.WeakSet[Any] = weakref.WeakSet()


def is_loader(value: Any) -> bool:
    """Whether it is a DataLoader that iterates as torch's own does."""
    kind = type(value)
    own = (
        kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator if isinstance(value, DataLoader) else False
    )
    return bool(own)


def is_drawn_by_index(loader: Any) -> bool:
    return not isinstance(loader.dataset, IterableDataset)


def loader_length(loader: Any) -> int | None:
    """Batches of a loader. Of an iterable dataset too, without asking the loader: torch would warn about it later."""
    try:
        if is_drawn_by_index(loader):
            return len(loader)
        if loader.num_workers:
            return None
        count, size = len(loader.dataset), loader.batch_size or 1
    except TypeError:
        return None
    return count // size if loader.drop_last else -(-count // size)


class Batches(Draw):
    """A map-style dataset's batches, as the loader's own sampler gives their indices. `live`: an iterator that the user holds."""

    def __init__(self, loader: Any, drawing: Drawing, *, live: Any = None, cached: bool = False) -> None:
        super().__init__()
        self._loader, self._drawing, self._live, self._cached = loader, drawing, live, cached
        it = loader if live is None else live
        dataset, collate = (it.dataset, it.collate_fn) if live is None else (it._dataset, it._collate_fn)
        self.opener: Batch = Batch(dataset, collate, it._auto_collation)
        self.length = loader_length(loader) if live is None else max(0, len(live) - live._num_yielded)
        self._known = is_known_sampler(it._index_sampler)
        self._iterator: Any = live
        self._drawn = 0 if live is None else live._num_yielded
        self._still = False
        self._first: Any = None

    def begin(self) -> None:
        if self._live is None:
            self._iterator = _index_iterator(self._loader)

    def units(self) -> Iterator[Drawn]:
        while True:
            before = Snapshot.now() if self._drawing.watched and not self._known else None
            try:
                indices = self._iterator._next_index()
            except StopIteration:
                return
            if before is not None:
                self._still = not self._drawing.saw(before) and self._drawn > 0
            if not can_encode(indices):
                raise RefusedLoop(
                    f"the loader's sampler gives {type(indices).__name__} objects, which can't be sent to a worker",
                    hint="Let it give whole numbers or lists of them.",
                    reason="indices can't travel",
                )
            self._first = indices if self._drawn == 0 else self._first
            self._drawn += 1
            yield indices, _count(indices) if self.opener.auto else 1

    def calm(self) -> bool:
        if not self._drawn:
            return False
        if self._known:
            return True
        foreseen = of_sampling(self._iterator)
        return foreseen is Foresight.NEVER or (foreseen is Foresight.UNKNOWN and self._still)

    def must_be_here(self) -> bool:
        """A loader's own processes have random numbers of their own, and prefetch; `cycle` would fetch a sample again."""
        if self._live is not None or not (self._loader.num_workers or self._cached):
            return False
        if self._loader.num_workers and not self._known and (self._iterator is None or not self.calm()):
            return True
        if self._first is None:  # its turn has not come yet
            return of_function(type(self.opener.dataset).__getitem__) is not Foresight.NEVER
        return fetching_draws(self.opener, self._first)

    def finish(self, consumed: int, done: bool) -> None:
        if (consumed or done) and self._live is None and self._loader.num_workers and self._loader.persistent_workers:
            _begun.add(self._loader)

    def give_back(self, pending: list[Any], used: int) -> Any:
        """Puts index batches back in front of the user's own iterator; `used` of them have been iterated."""
        self._live._num_yielded += used
        if pending:
            self._live._sampler_iter = itertools.chain(pending, self._live._sampler_iter)
        return self._live


def _count(indices: Any) -> int:
    return len(indices) if isinstance(indices, (list, tuple, torch.Tensor)) else 1


def _index_iterator(loader: Any) -> Any:
    """An iterator of the loader that gives index batches, made with the random numbers that iterating it here would use.

    In torch 2.13 making either kind of iterator draws the base seed, from the loader's generator; one with processes makes its sampler's
    iterator a second time, and one whose processes persist draws no new seed from its second pass on.
    """
    if not loader.num_workers:
        return iter(loader)
    here = copy.copy(loader)
    here.num_workers, here.timeout, here.prefetch_factor = 0, 0, None
    again = loader.persistent_workers and (loader in _begun or loader._iterator is not None)
    if again:
        here.generator = torch.Generator()  # a seed that nobody uses
    iterator = DataLoader.__iter__(here)
    if not again:
        iterator._sampler_iter = iter(iterator._index_sampler)
    return iterator


def fetching_draws(opener: Batch, indices: Any) -> bool:
    """Whether fetching a batch uses the global random number generators: it is fetched once, silently, and they are put back."""
    before = Snapshot.now()
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        opener.fetch(indices)
    moved = before.moved() is not None
    before.restore()
    return moved
