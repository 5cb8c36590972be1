"""What instrumented calls ask: is it device-side, does it act on the notebook's own world, is it the user's own function?"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from ..split.callees import Callees
from ..values import Ghost, is_metric_type
from .classify import IMPURE, PLAIN, RECORD, SINK, TORCH, USER, calls_back, kind_of, with_caller
from .expressions import Expressions

Act = Callable[[dict[Any, Any]], Any]
_IMMUTABLE = (str, bytes, int, float, complex, tuple, frozenset, type(None))


class Calls(Expressions):
    """Calls of functions and methods."""

    callees: Callees

    # --- what the halves do differently --------------------------------------------------------------

    def _take_values(self, number: int, function: Any, values: dict[Any, Any], *, text: bool, limited: bool = False) -> dict[Any, Any]:
        """Device-side values that plain code receives: recorded by value on the worker, handed out in the notebook."""
        raise NotImplementedError

    def _mutate(self, number: int, owner: Any, act: Act, values: dict[Any, Any], *, forced: bool = False) -> Any:
        """An evaluation that changes `owner`. Where that is the notebook's own (the worker says so; `forced`: by its place), both act,
        and `values` travel; else it is an ordinary device-side one."""
        raise NotImplementedError

    def _silent(self, function: Any) -> bool:
        """Whether a plain call must not happen here."""
        return False

    def _calling(self, function: Any) -> Callable[..., Any]:
        """`function`, told to the log where a device-side evaluation calls it back."""
        raise NotImplementedError

    def _impure(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._op(number, lambda: function(*args, **kwargs))

    # --- calls -------------------------------------------------------------------------------------------

    def call(self, number: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.is_device(function):
            return self._run(number, function, args, kwargs, function)
        kind = kind_of(function)
        if kind == SINK:
            return self._sink(number, function, args, kwargs)
        if kind == IMPURE:
            return self._impure(number, function, args, kwargs)
        if kind == USER:
            compiled = self.callees.compiled(function, self)
            if compiled is not None:
                return compiled(*args, **kwargs)
            if self.callees.is_opaque(function):
                return self._run(number, function, args, kwargs)
        elif kind == TORCH:
            return self._run(number, function, args, kwargs, *args, *kwargs.values())
        if self.touches(args) or (kwargs and self.touches(kwargs)):
            owner = getattr(function, "__self__", None)
            if owner is not None and not isinstance(owner, (types.ModuleType, type, *_IMMUTABLE)):
                return self._sink(number, function, args, kwargs)
            if kind == RECORD:
                return self._sink(number, function, args, kwargs, limited=True)
            if kind == PLAIN or not self.callees.is_instrumented(function):
                return self._run(number, function, args, kwargs, *args, *kwargs.values())
        if kwargs and any(type(value) is Ghost for value in kwargs.values()):
            return Ghost(getattr(function, "__name__", "object"))
        return self._native(lambda *a: function(*a, **kwargs), *args)

    def method(self, number: int, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if self.is_device(owner):
            if name[-1] == "_" and name[0] != "_":
                return self._in_place(number, owner, name, args, kwargs)
            if calls_back(args) or (kwargs and calls_back(kwargs.values())):
                args = tuple(self._callback(a) for a in args)
                kwargs = {k: self._callback(v) for k, v in kwargs.items()}
            return self._method(number, owner, name, args, kwargs)
        if isinstance(owner, (types.ModuleType, type)):
            return self.call(number, getattr(owner, name), *args, **kwargs)
        if type(owner) is Ghost or id(owner) in self.ghosts:
            return self._sink(number, getattr(owner, name), args, kwargs)
        function = getattr(owner, name)
        if isinstance(owner, _IMMUTABLE) and (self.touches(args) or self.touches(kwargs) or self.touches(owner)):
            return self._op(number, lambda: function(*args, **kwargs), owner, *args, *kwargs.values())
        if type(owner) in (list, dict, set) and self._is_fresh(owner):
            return function(*args, **kwargs)
        if type(owner) in (dict, list):
            for given in args:
                self._escapes(given)
        if type(function) is types.FunctionType and is_metric_type(
            type(owner)
        ):  # torchmetrics wraps `update` and `compute` on the instance
            return self._sink(number, function, args, kwargs)
        return self.call(number, function, *args, **kwargs)

    def _method(self, number: int, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._op(number, lambda: getattr(owner, name)(*args, **kwargs), owner, *args, *kwargs.values())

    def _run(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *operands: Any) -> Any:
        """A device-side call. Functions of the body's own among the arguments may be called back from it."""
        if calls_back(args) or (kwargs and calls_back(kwargs.values())):
            args = tuple(self._callback(a) for a in args)
            kwargs = {k: self._callback(v) for k, v in kwargs.items()}
        return self._op(number, lambda: function(*args, **kwargs), *operands)

    def _callback(self, value: Any) -> Any:
        return self._calling(value) if type(value) is types.FunctionType else value

    def _in_place(self, number: int, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`total.add_(x)`: on a tensor that the notebook keeps, or on a device-side one."""
        values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        count = len(args)

        def act(values: dict[Any, Any]) -> Any:
            return getattr(owner, name)(*(values[i] for i in range(count)), **{k: v for k, v in values.items() if type(k) is str})

        return self._mutate(number, owner, act, values)

    def _sink(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, limited: bool = False) -> Any:
        """A call that acts on plain objects: device-side arguments travel by value, and the notebook executes it."""
        needed: dict[Any, Any] = {i: a for i, a in enumerate(args) if self.touches(a)}
        if kwargs:
            needed.update({k: v for k, v in kwargs.items() if self.touches(v)})
        if needed:
            given = self._take_values(number, function, needed, text=function is print, limited=limited)
            args = tuple(given.get(i, a) for i, a in enumerate(args))
            kwargs = {k: given.get(k, v) for k, v in kwargs.items()}
        if self._silent(function):
            return None if function is print else Ghost(getattr(function, "__name__", "object"))
        return function(*args, **with_caller(function, args, kwargs))
