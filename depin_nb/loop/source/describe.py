"""From the user's iterable to draws: what kind each part is, and how its data travels."""

from __future__ import annotations

import itertools
import types
from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, cast

import numpy as np
import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from ...core.errors import RefusedLoop
from ..values import is_value
from .composite import Chaining, Counting, Cycling, Slicing, Zipping
from .draws import Draw, Drawing, Indexed, Items, Values
from .live import FetchingDraw, Live, LiveItems
from .loaders import Batches, is_drawn_by_index, is_loader, loader_length
from .opener import Sample
from .policy import choose_way, stand_ins
from .wrappers import Chain, Count, Cycle, Enumerate, Fetching, Made, Product, Repeat, Reversed, Slice, Wrapper, Zip, is_bar

_LISTED: tuple[type, ...] = (
    dict,
    set,
    frozenset,
    deque,
    KeysView,
    ValuesView,
    ItemsView,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


def describe(iterable: Any, drawing: Drawing, *, cached: bool = False) -> Draw:
    """The draw of an iterable. Raises RefusedLoop for what can't be iterated or sent."""
    if isinstance(iterable, Wrapper):
        return _wrapped(iterable, drawing, cached)
    if isinstance(iterable, Fetching):
        return _fetching(iterable, drawing)
    if is_bar(iterable):
        drawing.bars.append(iterable)
        return describe(iterable.iterable, drawing, cached=cached)
    if is_loader(iterable):
        return _loader(iterable, drawing, cached)
    if isinstance(iterable, _BaseDataLoaderIter):
        return _loader_iterator(iterable, drawing)
    if isinstance(iterable, range):
        return Values(iterable, len(iterable))
    if type(iterable) in (list, tuple):
        return _sequence(iterable, range(len(iterable)), drawing)
    if isinstance(iterable, _LISTED):
        listed = list(cast(Any, iterable))
        return _sequence(listed, range(len(listed)), drawing)
    if isinstance(iterable, (torch.Tensor, np.ndarray)) and iterable.ndim:
        return Indexed(iterable, range(len(iterable)), len(iterable))
    if isinstance(iterable, Dataset) and not isinstance(iterable, IterableDataset) and not hasattr(type(iterable), "__iter__"):
        return _dataset(iterable, drawing)
    return _other(iterable, drawing)


def _wrapped(wrapper: Wrapper, drawing: Drawing, cached: bool) -> Draw:
    args = wrapper.args
    if isinstance(wrapper, Enumerate):
        return Counting(describe(wrapper.iterable, drawing, cached=cached), wrapper.start)
    if isinstance(wrapper, Zip):
        return Zipping(*(describe(part, drawing, cached=cached) for part in args))
    if isinstance(wrapper, Slice):
        return Slicing(describe(args[0], drawing, cached=cached), *args[1:])
    if isinstance(wrapper, Chain):
        return Chaining(*(describe(_without_bar(part), drawing, cached=cached) for part in args))
    if isinstance(wrapper, Cycle):
        return Cycling(describe(args[0], drawing, cached=True))
    if isinstance(wrapper, Reversed):
        return _sequence(args[0], range(len(args[0]) - 1, -1, -1), drawing)
    if isinstance(wrapper, Count):
        return Values(wrapper.real(), None, endless=True)
    if isinstance(wrapper, Made):
        return Items(wrapper.real, None, drawing)
    if isinstance(wrapper, Repeat):
        return _repeated(wrapper, drawing)
    assert isinstance(wrapper, Product)
    return _product(wrapper, drawing)


def _without_bar(part: Any) -> Any:
    """In `chain` a bar of one part ticks as that part is drawn."""
    return iter(part) if is_bar(part) else part


def _repeated(wrapper: Repeat, drawing: Drawing) -> Draw:
    times = wrapper.args[1] if len(wrapper.args) > 1 else wrapper.kwargs.get("times")
    value = wrapper.args[0] if wrapper.args else wrapper.kwargs["object"]
    count = None if times is None else max(0, times)
    if is_value(value):
        return Values(wrapper.real(), count, endless=count is None)
    draw = _sequence([value], itertools.repeat(0) if count is None else itertools.repeat(0, count), drawing)
    draw.length, draw.endless = count, count is None
    return draw


def _product(wrapper: Product, drawing: Drawing) -> Draw:
    pools = wrapper.pools
    count = int(np.prod([len(pool) for pool in pools], dtype=object)) if pools else 1
    if all(is_value(pool) for pool in pools):
        return Values(itertools.product(*pools), count)
    columns = zip(*itertools.product(*(range(len(pool)) for pool in pools)), strict=True)
    draw = Zipping(*(_sequence(pool, column, drawing) for pool, column in zip(pools, columns, strict=False)))
    draw.length = count
    return draw


def _sequence(values: Any, indices: Any, drawing: Drawing) -> Draw:
    """A list or tuple: as values where it holds plain ones, else as an object that both sides hold."""
    if any(isinstance(v, (torch.nn.Module, Optimizer)) for v in _inside(values)):
        drawing.solo = "the loop goes over models or optimizers, one after the other"
    if is_value(values):
        return Values((values[i] for i in indices), len(values))
    return Indexed(values, indices, len(values))


def _inside(values: Any) -> Iterator[Any]:
    for value in values:
        yield value
        if isinstance(value, (list, tuple)):
            yield from value


def _loader(loader: Any, drawing: Drawing, cached: bool) -> Draw:
    if not is_drawn_by_index(loader):
        drawing.note("the loader's dataset is iterated here, and leases carry its batches")
        return Items(lambda: iter(loader), loader_length(loader), drawing)
    if drawing.exact and (loader.num_workers or cached):
        drawing.note("its samples are random, so the loader fetches them here as in a local loop, and leases carry them")
        return Items(lambda: iter(loader), loader_length(loader), drawing)
    way, why = _way(loader.dataset, drawing)
    if way == "samples":
        drawing.note(why or "the batches are fetched here, and leases carry them")
        return Items(lambda: iter(loader), loader_length(loader), drawing)
    if loader.num_workers:
        drawing.note("the workers fetch the samples themselves, without processes of the loader's")
    return Batches(loader, drawing, cached=cached)


def _way(dataset: Any, drawing: Drawing) -> tuple[str, str]:
    way, why = choose_way(dataset, drawing.way, elsewhere=drawing.elsewhere)
    drawing.stand_ins.update(stand_ins(dataset, way))
    if way == "worker":
        drawing.note("each worker builds the dataset from its own files")
    return way, why


def _loader_iterator(iterator: Any, drawing: Drawing) -> Draw:
    """An iterator of a loader that the user holds: `it = iter(loader)`."""
    if iterator._num_workers == 0 and not isinstance(iterator._dataset, IterableDataset):
        way, why = _way(iterator._dataset, drawing)
        if way != "samples":
            return Live(Batches(None, drawing, live=iterator), drawing)
        drawing.note(why or "the batches are fetched here, and leases carry them")
    left = None if isinstance(iterator._dataset, IterableDataset) else max(0, len(iterator) - iterator._num_yielded)
    return Live(LiveItems(iterator, left, drawing, stepwise=drawing.leaves), drawing)


def _fetching(fetching: Fetching, drawing: Drawing) -> Draw:
    part = describe(fetching.iterable, drawing)
    live = _live(fetching.iterator, drawing)
    return FetchingDraw(part, live, fetching, lambda iterator: _live(iterator, drawing))


def _live(iterator: Any, drawing: Drawing) -> Live:
    """An iterator that comes back to the user after the loop, so nothing drawn ahead is lost."""
    if isinstance(iterator, _BaseDataLoaderIter):
        draw = _loader_iterator(iterator, drawing)
        if isinstance(draw, Live):
            return draw
    return Live(LiveItems(iterator, None, drawing, stepwise=False), drawing)


def _dataset(dataset: Any, drawing: Drawing) -> Draw:
    """A map-style dataset that is iterated itself, sample by sample."""
    try:
        count = len(dataset)
    except TypeError:
        return _other(dataset, drawing)
    way, why = _way(dataset, drawing)
    if way == "samples":
        drawing.note(why or "the samples are fetched here, and leases carry them")
        return Items(lambda: iter(dataset), count, drawing)
    return Indexed(dataset, range(count), count, opener=Sample(dataset), batched=False)


def _other(iterable: Any, drawing: Drawing) -> Draw:
    """Whatever else can be iterated. Where the body may leave early, an iterator that the user may hold is drawn item by item."""
    if isinstance(iterable, itertools.count):
        return Values(iterable, None, endless=True)
    if not hasattr(type(iterable), "__iter__") and not hasattr(type(iterable), "__getitem__"):
        raise RefusedLoop(f"the loop iterates a {type(iterable).__name__}, which isn't iterable", reason="not iterable")
    if isinstance(type(iterable).__dict__.get("__next__"), types.FunctionType):  # of a class of the user's: `__iter__` may begin anew
        drawing.lost = drawing.leaves
        return Items(lambda: iter(iterable), _length(iterable), drawing, stepwise=drawing.leaves)
    if hasattr(type(iterable), "__next__"):
        live = Live(LiveItems(iterable, None, drawing, stepwise=drawing.leaves), drawing)
        live.endless, drawing.lost = isinstance(iterable, itertools.cycle), drawing.leaves
        return live
    return Items(lambda: iter(iterable), _length(iterable), drawing)


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):
        return None
