"""Generators that a leased cell begins and a later cell goes on with: their frames run rewritten code, which then only does as it says.

Such a frame finds `Released` where `leasing.Loops` was, for as long as the generator lives; its loops run here, on the user's own objects.
"""

from __future__ import annotations

import ast
import gc
import itertools
import sys
import types
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any

from .find.counting import passes
from .find.forms import LOOPS
from .find.sites import Site
from .find.things import own_nodes
from .halves.classify import with_caller
from .halves.statements import Statements
from .source import Fetching
from .split.expressions import RUNTIME
from .split.originals import Originals, is_rewritten

Suspended = Generator[Any, Any, Any] | Coroutine[Any, Any, Any] | AsyncGenerator[Any, Any]
_SUSPENDED = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_suspended: weakref.WeakKeyDictionary[Suspended, Originals] = weakref.WeakKeyDictionary()


class Plainly(Statements):
    """The runtime of a body that isn't leased: every operation is what the user wrote."""

    def __init__(self) -> None:
        self.ghosts, self.held, self.accumulators, self.flow = {}, {}, frozenset(), "next"

    def is_device(self, value: Any) -> bool:
        return False

    def touches(self, value: Any, depth: int = 0) -> bool:
        return False

    def _op(self, number: int, act: Callable[[], Any], *operands: Any) -> Any:
        return act()

    def call(self, number: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **with_caller(function, args, kwargs))

    def method(self, number: int, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return self.call(number, getattr(owner, name), *args, **kwargs)


class PlainEntry:
    """What `Loops.enter` gives where nothing is leased any more: the user's own iterable, in the user's own frame."""

    ran_out = False

    def __init__(self, iterable: Any, frame: types.FrameType) -> None:
        self._iterable, self._frame = iterable, frame
        self._before: Any = None

    def __enter__(self) -> PlainEntry:
        self._before = self._frame.f_globals.get(RUNTIME)
        self._frame.f_globals[RUNTIME] = Plainly()
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def __exit__(self, *error: object) -> None:
        space = self._frame.f_globals
        if self._before is None:
            space.pop(RUNTIME, None)
        else:
            space[RUNTIME] = self._before
        made = [v for v in (*self._frame.f_locals.values(), *space.values()) if type(v) is types.FunctionType]
        for originals in list(_suspended.values()):
            originals.restore(made)  # functions that the body defined

    def has(self, name: str, names: dict[str, Any]) -> bool:
        """Nothing is left behind by a worker."""
        return False


class Released:
    """Stands for `leasing.Loops` in the frames of generators that outlive their cell."""

    fetching = staticmethod(Fetching)
    passes = staticmethod(passes)
    endless = staticmethod(itertools.count)

    @staticmethod
    def wrap(function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    @staticmethod
    def enter(_number: int, iterable: Any, _token: int) -> PlainEntry:
        return PlainEntry(iterable, sys._getframe(1))


def release_suspended(sites: Iterable[Site], originals: Originals) -> None:
    """Has every generator that was begun under rewritten code, in this cell or an earlier one, go on plainly. Call it last."""
    if any(_may_be_suspended(site) for site in sites):
        for value in gc.get_objects():
            if type(value) in _SUSPENDED and value not in _suspended and _frame_of(value) is not None and is_rewritten(_code_of(value)):
                _suspended[value] = originals
                weakref.finalize(value, _forget, _frame_of(value).f_globals).atexit = False
    for value in list(_suspended):
        frame = _frame_of(value)
        if frame is None:
            del _suspended[value]
        else:
            frame.f_globals[LOOPS] = Released()


def _forget(space: dict[str, Any]) -> None:
    """A generator is gone: what stood in its namespace for it goes too, unless another one needs it."""
    needed = any((frame := _frame_of(value)) is not None and frame.f_globals is space for value in list(_suspended))
    if not needed and type(space.get(LOOPS)) is Released:
        del space[LOOPS]


def _may_be_suspended(site: Site) -> bool:
    kinds = (ast.Yield, ast.YieldFrom, ast.Await)
    return isinstance(site.scope, ast.AsyncFunctionDef) or any(isinstance(node, kinds) for node in own_nodes(site.scope))


def _frame_of(value: Any) -> Any:
    return next((getattr(value, name) for name in ("gi_frame", "cr_frame", "ag_frame") if hasattr(value, name)), None)


def _code_of(value: Any) -> types.CodeType:
    return next(getattr(value, name) for name in ("gi_code", "cr_code", "ag_code") if hasattr(value, name))
