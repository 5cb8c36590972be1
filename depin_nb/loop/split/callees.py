"""The notebook's own functions that a body calls: instrumented like the body, from sources that travel with the program."""

from __future__ import annotations

import functools
import inspect
import types
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import RefusedLoop
from ..find.definitions import compiled, is_user_code, parse_source, source_of
from ..find.unsupported import refuse_unsupported
from .expressions import RUNTIME
from .instrument import Instrument
from .originals import Originals

Key = tuple[str, int, str]  # file name, first line, name: the same on both sides


def key_of(code: types.CodeType) -> Key:
    return code.co_filename, code.co_firstlineno, code.co_name


def underlying(function: Any) -> tuple[types.FunctionType | None, Any]:
    """The Python function behind a callable and the `self` it is bound to."""
    if isinstance(function, types.FunctionType):
        return function, None
    if isinstance(function, types.MethodType) and isinstance(function.__func__, types.FunctionType):
        return function.__func__, function.__self__
    if isinstance(function, functools.partial):
        return underlying(function.func)
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the method of an instance of a user's class
    if isinstance(call, types.FunctionType) and not isinstance(function, type):
        return call, function
    return None, None


@dataclass
class Callees:
    """Sources of the user's functions by key. A function of the user without one here runs whole, on the worker only ("opaque")."""

    sources: dict[Key, str] = field(default_factory=dict)
    originals: Originals = field(default_factory=Originals, repr=False)
    _opaque: set[Key] = field(default_factory=set, repr=False)
    _compiled: dict[types.CodeType, types.CodeType | None] = field(default_factory=dict, repr=False)
    _touched: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    def add(self, function: types.FunctionType) -> bool:
        """Takes a function up if its source is there and can be split; False when it stays opaque."""
        key = key_of(function.__code__)
        if key in self.sources:
            return True
        if key in self._opaque:
            return False
        self._opaque.add(key)
        if function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            return False
        source = source_of(function)
        if source is None:
            return False
        try:
            refuse_unsupported(parse_source(source, function.__code__).body)
        except RefusedLoop:
            return False
        self._opaque.discard(key)
        self.originals.add(function.__code__)
        self.sources[key] = source
        return True

    def is_opaque(self, function: Any) -> bool:
        target, _ = underlying(function)
        if target is None or not is_user_code(target.__code__) or self.is_instrumented(target):
            return False
        return key_of(target.__code__) not in self.sources

    @staticmethod
    def is_instrumented(function: Any) -> bool:
        target, _ = underlying(function)
        return target is not None and RUNTIME in target.__code__.co_names

    def compiled(self, function: Any, runtime: Any) -> Any:
        """An instrumented twin of a user's function (bound like it), or None."""
        if isinstance(function, functools.partial):
            inner = self.compiled(function.func, runtime)
            return None if inner is None else functools.partial(inner, *function.args, **function.keywords)
        target, owner = underlying(function)
        if target is None or not is_user_code(target.__code__) or self.is_instrumented(target):
            return None
        code = self._code(target.__code__)
        if code is None:
            return None
        space = target.__globals__
        if space.get(RUNTIME) is not runtime:
            self._touched[id(space)] = space
            space[RUNTIME] = runtime
        twin = types.FunctionType(code, space, target.__name__, target.__defaults__, target.__closure__)
        twin.__kwdefaults__ = target.__kwdefaults__
        return twin if owner is None else types.MethodType(twin, owner)

    def release(self) -> None:
        """Takes the runtime out of the modules that it was put in."""
        for space in self._touched.values():
            space.pop(RUNTIME, None)
        self._touched.clear()

    def _code(self, code: types.CodeType) -> types.CodeType | None:
        if code not in self._compiled:
            source = self.sources.get(key_of(code))
            self._compiled[code] = None if source is None else _instrument(source, code)
        return self._compiled[code]


def _instrument(source: str, code: types.CodeType) -> types.CodeType:
    node = parse_source(source, code)
    node.body = Instrument(worker=False, function=True).body(node.body)
    return compiled(node, code)
