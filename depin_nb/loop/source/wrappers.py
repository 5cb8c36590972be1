"""What stands in a leased loop's header for `enumerate`, `zip` and the functions of itertools: it keeps what it iterates in sight."""

from __future__ import annotations

import builtins
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any


class Wrapper:
    """Stands for `function(*args, **kwargs)`. Iterating it is calling the function; `iterables` are its parts, for `loop.generators`."""

    function: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    @property
    def iterables(self) -> tuple[Any, ...]:
        return self.args

    def real(self) -> Any:
        """What the user's call would have given."""
        return type(self).function(*map(unwrapped, self.args), **self.kwargs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.real())


class Enumerate(Wrapper):
    """`enumerate(iterable, start=0)`."""

    function = builtins.enumerate

    @property
    def iterable(self) -> Any:
        return self.kwargs.get("iterable", self.args[0] if self.args else ())

    @property
    def iterables(self) -> tuple[Any, ...]:
        return (self.iterable,)

    @property
    def start(self) -> int:
        return int(self.args[1] if len(self.args) > 1 else self.kwargs.get("start", 0))


class Zip(Wrapper):
    """`zip(*iterables)`."""

    function = builtins.zip


class Reversed(Wrapper):
    """`reversed(sequence)`."""

    function = builtins.reversed


class Slice(Wrapper):
    """`itertools.islice(iterable, ...)`."""

    function = itertools.islice


class Chain(Wrapper):
    """`itertools.chain(*iterables)`."""

    function = itertools.chain


class Cycle(Wrapper):
    """`itertools.cycle(iterable)`."""

    function = itertools.cycle


class Count(Wrapper):
    """`itertools.count(...)`."""

    function = itertools.count


class Repeat(Wrapper):
    """`itertools.repeat(object[, times])`."""

    function = itertools.repeat


class Product(Wrapper):
    """`itertools.product(*iterables)`: like it, goes over its iterables when it is made."""

    function = itertools.product

    def __init__(self, *args: Any, repeat: int = 1) -> None:
        super().__init__(*(tuple(unwrapped(a)) for a in args), repeat=repeat)

    @property
    def pools(self) -> tuple[tuple[Any, ...], ...]:
        return self.args * self.kwargs["repeat"]


class Made(Wrapper):
    """A generator that the header itself made: nobody else goes on with it after the loop."""

    def real(self) -> Any:
        return self.args[0]


class Fetching:
    """A body's own `next(iterator)`, made part of the loop: items are `(item of iterable, next(iterator))`.

    When the iterator is exhausted it becomes `renew()`, and without `renew` the loop ends. `flagged`: items also have whether it was
    renewed for them. Afterwards `iterator` is the live one, and `exhausted` whether it was what ended the loop; then `last()` is the
    item of `iterable` that found nothing to be paired with.
    """

    exhausted = False
    last: Callable[[], Any]

    def __init__(self, iterable: Any, iterator: Any, renew: Callable[[], Any] | None = None, *, flagged: bool = False) -> None:
        self.iterable, self.iterator, self.renew, self.flagged = iterable, iterator, renew, flagged

    @property
    def iterables(self) -> tuple[Any, ...]:
        return self.iterable, self.iterator

    def end(self, opened: Callable[[Any, int, Callable[[Any], Any]], Any], data: Any) -> None:
        """The iterator is exhausted, after `data` was drawn from `iterable`, which `opened` turns into the item."""
        self.exhausted = True
        self.last = lambda: opened(data, 0, lambda value: value)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for item in self.iterable:
            renewed: tuple[bool, ...] = (False,) if self.flagged else ()
            try:
                fetched = next(self.iterator)
            except StopIteration:
                if self.renew is None:
                    self.end(lambda data, index, own: data, item)
                    return
                self.iterator, renewed = self.renew(), tuple(True for _ in renewed)
                try:
                    fetched = next(self.iterator)
                except StopIteration:
                    self.end(lambda data, index, own: data, item)
                    return
            yield item, fetched, *renewed


_KNOWN: dict[Any, type[Wrapper]] = {w.function: w for w in (Enumerate, Zip, Reversed, Slice, Chain, Cycle, Count, Repeat, Product)}


def wrap(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in the leased loop's `for` for a call: what goes over its iterables one by one keeps them in sight, all else is called."""
    if function == itertools.chain.from_iterable and len(args) == 1 and isinstance(args[0], (list, tuple)):
        function, args = itertools.chain, tuple(args[0])
    known = _KNOWN.get(function) if isinstance(function, type) else None
    if known is Reversed and not isinstance(args[0] if args else None, (list, tuple)):
        known = None
    if known is not None and not (known is Zip and kwargs):
        _checked(function, args, kwargs, known)
        return known(*args, **kwargs)
    if is_bar_maker(function):
        return function(*args, **kwargs)
    made = function(*map(unwrapped, args), **{k: unwrapped(v) for k, v in kwargs.items()})
    fresh = isinstance(made, types.GeneratorType) and inspect.getgeneratorstate(made) == inspect.GEN_CREATED
    return Made(made) if fresh else made


def _checked(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: type[Wrapper]) -> None:
    """Raises what the call itself would raise for its arguments, without going over any of the user's iterables."""
    empty = tuple(() if hasattr(a, "__iter__") and not isinstance(a, int) else a for a in args)
    if known in (Enumerate, Slice, Cycle) and args:
        function(empty[0], *args[1:], **kwargs)
    elif known in (Count, Repeat):
        function(*args, **kwargs)


def is_bar_maker(function: Any) -> bool:
    return isinstance(function, type) and any(base.__name__ == "tqdm" and base.__module__.startswith("tqdm") for base in function.__mro__)


def is_bar(value: Any) -> bool:
    """Whether a value is a progress bar around an iterable."""
    return is_bar_maker(type(value)) and hasattr(value, "iterable")


def unwrapped(value: Any) -> Any:
    """What the user's own code is given: the real enumerate, zip or itertools object."""
    return value.real() if isinstance(value, Wrapper) else value
