"""The user's functions as they were: rewritten code is put back wherever it went, and never travels.

A function that is defined while a leased cell runs has rewritten code from the start, and so have the closures of a factory. They outlive
the cell, so afterwards every function that has such code gets what its source says.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..find.forms import LOOPS
from .expressions import RUNTIME

Key = tuple[str, str, int, int, tuple[str, ...]]
_current: ContextVar[Originals | None] = ContextVar("originals", default=None)


@dataclass
class Originals:
    """What was compiled from the user's source, by where it stands."""

    _codes: dict[Key, list[types.CodeType]] = field(default_factory=dict)
    _files: set[str] = field(default_factory=set)

    def add(self, code: types.CodeType) -> None:
        """Takes up unchanged code, with that of the functions in it."""
        known = self._codes.setdefault(_key(code), [])
        if not is_rewritten(code) and code not in known:
            known.append(code)
            self._files.add(code.co_filename)
            for constant in code.co_consts:
                if isinstance(constant, types.CodeType):
                    self.add(constant)

    def of(self, code: types.CodeType) -> types.CodeType | None:
        """The original of rewritten code; None for other code, or where several lambdas of a line can't be told apart."""
        if code.co_filename not in self._files or not is_rewritten(code):
            return None
        known = self._codes.get(_key(code), [])
        return known[0] if len(known) == 1 else None

    def restore(self, values: Iterable[object]) -> None:
        """Gives the functions among `values` their own code again."""
        for value in values:
            if type(value) is types.FunctionType:
                code = self.of(value.__code__)
                if code is not None:
                    value.__code__ = code

    def restore_all(self) -> None:
        """The same for every function that there is."""
        self.restore(gc.get_objects())

    @contextmanager
    def active(self) -> Iterator[Originals]:
        """For as long as it is, functions are written to programs with their original code; at its end all have it again."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)
            self.restore_all()


def as_written(function: types.FunctionType) -> types.FunctionType | None:
    """A twin of a function whose code is rewritten at present, with its original code; None for any other."""
    originals = _current.get()
    code = originals.of(function.__code__) if originals is not None else None
    if code is None:
        return None
    twin = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__, twin.__annotations__ = function.__kwdefaults__, function.__annotations__
    twin.__qualname__, twin.__module__, twin.__doc__ = function.__qualname__, function.__module__, function.__doc__
    twin.__dict__.update(function.__dict__)
    return twin


def is_rewritten(code: types.CodeType) -> bool:
    """Whether code, or that of a function in it, is instrumented or holds a leased loop."""
    if LOOPS in code.co_names or RUNTIME in code.co_names:
        return True
    return any(isinstance(constant, types.CodeType) and is_rewritten(constant) for constant in code.co_consts)


def _key(code: types.CodeType) -> Key:
    return code.co_filename, code.co_qualname, code.co_firstlineno, code.co_argcount, code.co_freevars
