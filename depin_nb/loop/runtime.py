"""What instrumented code asks, decided once for both halves: which evaluations are device-side, which are plain.

`Runtime` holds the decisions; `record.Recorder` and `replay.Replayer` differ only in what a device-side evaluation does: the one
executes and logs it, the other takes its plain result from the log. Both count device-side evaluations, so a log entry is found by
its turn, and a difference between the halves shows at once.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

from ..core.errors import ShipError
from .callees import Callees
from .values import BINARY, COMPARE, INPLACE, UNARY, Ghost, is_device_type, is_impure, is_sink, is_torch

VALUE, SIZE, SET, SINK, RAISE = range(5)
_IMMUTABLE = (str, bytes, int, float, complex, tuple, frozenset, type(None))
_SAMPLE = 64


class LeaveLoop(BaseException):
    """The worker half met `return`: the loop ends here."""


class Runtime:
    """Answers instrumented code. Subclasses implement `_op`, `_take_values`, `_silent` and `_elements`."""

    def __init__(self, callees: Callees) -> None:
        self.callees = callees
        self.turn = 0  # device-side evaluations so far in this iteration
        self.flow = "next"
        self.held: dict[int, Any] = {}  # tensors that are bookkeeping: sums and lists that the notebook keeps
        self.accumulators: frozenset[str] = frozenset()  # names of sums that the notebook keeps
        self.ghosts: dict[int, Any] = {}  # notebook objects that no worker has

    # --- the questions ----------------------------------------------------------------------------

    def is_device(self, value: Any) -> bool:
        return is_device_type(type(value)) and id(value) not in self.held

    def touches(self, value: Any, depth: int = 0) -> bool:
        """Whether a device-side value is in `value` (containers are looked into; of long ones the two ends)."""
        if self.is_device(value):
            return True
        kind = type(value)
        if depth > 6 or kind not in (list, tuple, dict, set, slice):
            return False
        if kind is slice:
            return any(self.is_device(v) for v in (value.start, value.stop, value.step))
        parts = list(value.values()) if kind is dict else list(value)
        if len(parts) > _SAMPLE:
            parts = parts[:8] + parts[-8:]
        return any(self.touches(part, depth + 1) for part in parts)

    # --- what the halves do differently --------------------------------------------------------------

    def _op(self, number: int, act: Callable[[], Any]) -> Any:
        """A device-side evaluation."""
        raise NotImplementedError

    def _take_values(self, number: int, function: Any, values: dict[Any, Any], *, text: bool, limited: bool = False) -> dict[Any, Any]:
        """Device-side values that plain code receives, by value: recorded on the worker, handed out in the notebook."""
        raise NotImplementedError

    def _native(self, act: Callable[..., Any], *operands: Any) -> Any:
        for operand in operands:
            if type(operand) is Ghost:
                if act is bool:
                    raise ShipError(f"the loop decides on {operand!r}", name=repr(operand), kind="ghost")
                return operand
        result = act(*operands)
        if self.held and is_device_type(type(result)) and any(id(o) in self.held for o in operands):
            self.held[id(result)] = result
        return result

    def _silent(self, function: Any) -> bool:
        """Whether a plain call must not happen here."""
        return False

    def _is_fresh(self, container: Any) -> bool:
        return False

    # --- expressions -----------------------------------------------------------------------------------

    def attribute(self, number: int, owner: Any, name: str) -> Any:
        if self.is_device(owner):
            return self._op(number, lambda: getattr(owner, name))
        return self._native(getattr, owner, name)

    def item(self, number: int, owner: Any, index: Any) -> Any:
        if self.is_device(owner) or self.touches(index):
            return self._op(number, lambda: owner[index])
        return self._native(operator.getitem, owner, index)

    def binary(self, number: int, op: str, left: Any, right: Any) -> Any:
        if self.touches(left) or self.touches(right):
            return self._op(number, lambda: BINARY[op](left, right))
        return self._native(BINARY[op], left, right)

    def unary(self, number: int, op: str, value: Any) -> Any:
        return self._op(number, lambda: UNARY[op](value)) if self.is_device(value) else self._native(UNARY[op], value)

    def compare(self, number: int, op: str, left: Any, right: Any) -> Any:
        if self.is_device(left) or self.touches(right):
            return self._op(number, lambda: COMPARE[op](left, right))
        return self._native(COMPARE[op], left, right)

    def chain(self, number: int, ops: tuple[str, ...], *parts: Callable[[], Any]) -> Any:
        left = parts[0]()
        result: Any = True
        for op, part in zip(ops, parts[1:], strict=True):
            right = part()
            result = self.compare(number, op, left, right)
            if not self.truth(number, result):
                return result
            left = right
        return result

    def truth(self, number: int, value: Any) -> bool:
        return bool(self._op(number, lambda: bool(value)) if self.is_device(value) else self._native(bool, value))

    def boolean(self, number: int, is_and: bool, *parts: Callable[[], Any]) -> Any:
        for part in parts[:-1]:
            value = part()
            if self.truth(number, value) is not is_and:
                return value
        return parts[-1]()

    def format(self, number: int, value: Any, conversion: int, spec: str) -> str:
        def act(value: Any) -> str:
            convert: Any = {ord("r"): repr, ord("s"): str, ord("a"): ascii}.get(conversion)
            return format(value if convert is None else convert(value), spec)

        return str(self._op(number, lambda: act(value)) if self.touches(value) else self._native(act, value))

    def fresh(self, number: int, container: Any) -> Any:
        return container

    def spread(self, number: int, value: Any) -> Any:
        return self._elements(number, value) if self.is_device(value) else value

    def mapping(self, number: int, value: Any) -> Any:
        if not self.is_device(value):
            return value
        keys = self._op(abs(number), lambda: list(value))
        return {key: self._op(abs(number), lambda key=key: value[key]) for key in keys}  # type: ignore[misc]

    def unpack(self, number: int, value: Any, pattern: tuple[Any, ...]) -> tuple[Any, ...]:
        items = self._elements(number, value) if self.is_device(value) else list(value)
        star = next((i for i, part in enumerate(pattern) if part == "*"), None)
        if star is None and len(items) != len(pattern):
            few = "not enough" if len(items) < len(pattern) else "too many"
            raise ValueError(f"{few} values to unpack (expected {len(pattern)})")
        if star is not None:
            end = len(items) - (len(pattern) - star - 1)
            items = [*items[:star], items[star:end], *items[end:]]
            return self._flatten(number, items, pattern, star)
        return tuple(
            self.unpack(number, item, part) if isinstance(part, tuple) else item for item, part in zip(items, pattern, strict=True)
        )

    def _flatten(self, number: int, items: list[Any], pattern: tuple[Any, ...], star: int) -> tuple[Any, ...]:
        parts = [self.unpack(number, item, part) if isinstance(part, tuple) else item for item, part in zip(items, pattern, strict=True)]
        return (*parts[:star], *parts[star], *parts[star + 1 :])

    def _elements(self, number: int, value: Any) -> list[Any]:
        """The elements of a device-side value, each classified by itself."""
        items: list[Any] = []

        def count() -> int:
            items.extend(value)
            return len(items)

        n = self._op(abs(number), count)
        return [self._op(abs(number), lambda i=i: items[i]) for i in range(n)]  # type: ignore[misc]

    def iterate(self, number: int, value: Any, pattern: tuple[Any, ...] | None = None) -> Iterator[Any]:
        items = self._iterate_device(abs(number), value) if self.is_device(value) else self._iterate_plain(value)
        return items if pattern is None else (self.unpack(number, item, pattern) for item in items)

    def _iterate_plain(self, value: Any) -> Iterator[Any]:
        if type(value) is Ghost:
            raise ShipError(f"the loop iterates {value!r}", name=repr(value), kind="ghost")
        return iter(value)

    def _iterate_device(self, number: int, value: Any) -> Iterator[Any]:
        source: list[Iterator[Any]] = []
        current: list[Any] = [None]

        def advance() -> bool:
            if not source:
                source.append(iter(value))
            for current[0] in source[0]:
                return True
            return False

        while self._op(number, advance):
            yield self._op(number, lambda: current[0])

    # --- calls -------------------------------------------------------------------------------------------

    def call(self, number: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.is_device(function):
            return self._op(number, lambda: function(*args, **kwargs))
        if is_sink(function) or isinstance(function, Ghost):
            return self._sink(number, function, args, kwargs)
        if is_impure(function):
            return self._op(number, lambda: function(*args, **kwargs))
        compiled = self.callees.compiled(function, self)
        if compiled is not None:
            return compiled(*args, **kwargs)
        if is_torch(function) or self.callees.is_opaque(function):
            return self._op(number, lambda: function(*args, **kwargs))
        if self.touches(args) or self.touches(kwargs):
            owner = getattr(function, "__self__", None)
            if owner is not None and not isinstance(owner, (types.ModuleType, type, *_IMMUTABLE)):
                return self._sink(number, function, args, kwargs)
            if not self.callees.is_instrumented(function):
                return self._op(number, lambda: function(*args, **kwargs))
        return self._native(lambda *a: function(*args, **kwargs), *args)

    def method(self, number: int, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if self.is_device(owner):
            return self._op(number, lambda: getattr(owner, name)(*args, **kwargs))
        if isinstance(owner, (types.ModuleType, type)):
            return self.call(number, getattr(owner, name), *args, **kwargs)
        if isinstance(owner, Ghost) or id(owner) in self.ghosts:
            return self._sink(number, getattr(owner, name), args, kwargs)
        function = getattr(owner, name)
        if isinstance(owner, _IMMUTABLE) and (self.touches(args) or self.touches(kwargs) or self.touches(owner)):
            return self._op(number, lambda: function(*args, **kwargs))
        if id(owner) in self.held:
            return self._native(lambda _owner, *a: function(*a, **kwargs), owner, *args)
        if self._is_fresh(owner) and isinstance(owner, (list, dict, set)):
            return function(*args, **kwargs)
        return self.call(number, function, *args, **kwargs)

    def _sink(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that acts on plain objects: device-side arguments travel by value, and the notebook executes it."""
        needed: dict[Any, Any] = {i: a for i, a in enumerate(args) if self.touches(a)}
        needed.update({k: v for k, v in kwargs.items() if self.touches(v)})
        if needed:
            given = self._take_values(number, function, needed, text=function is print)
            args = tuple(given.get(i, a) for i, a in enumerate(args))
            kwargs = {k: given.get(k, v) for k, v in kwargs.items()}
        if self._silent(function):
            return None if function is print else Ghost(getattr(function, "__name__", "object"))
        return function(*args, **kwargs)

    # --- statements ----------------------------------------------------------------------------------------

    def set_attribute(self, number: int, owner: Any, name: str, value: Any) -> None:
        if self.is_device(owner):
            self._op(-abs(number), lambda: setattr(owner, name, value))
        else:
            setattr(owner, name, self._stored(number, owner, value))

    def set_item(self, number: int, owner: Any, index: Any, value: Any) -> None:
        if self.is_device(owner) or self.touches(index):
            self._op(-abs(number), lambda: operator.setitem(owner, index, value))
        else:
            owner[index] = self._stored(number, owner, value)

    def _stored(self, number: int, owner: Any, value: Any) -> Any:
        """A value as a plain object keeps it: small device-side values arrive in the notebook by value."""
        if not self.touches(value) or self._is_fresh(owner):
            return value
        return self._take_values(number, None, {0: value}, text=False, limited=True).get(0, value)

    def augment(self, number: int, op: str, target: Any, value: Any, name: str) -> Any:
        if name in self.accumulators or id(target) in self.held:
            return self._accumulate(number, op, target, value)
        if self.is_device(target) or self.touches(value):
            if isinstance(target, (list, set, dict)) and not self._is_fresh(target):
                return self._accumulate(number, op, target, value)
            if not isinstance(target, (list, set, dict)):
                return self._op(number, lambda: INPLACE[op](target, value))
        return self._native(INPLACE[op], target, value)

    def augment_attribute(self, number: int, owner: Any, name: str, op: str, value: Any) -> None:
        if self.is_device(owner):
            self._op(-abs(number), lambda: setattr(owner, name, INPLACE[op](getattr(owner, name), value)))
            return
        current = getattr(owner, name)
        setattr(owner, name, self._augmented(number, op, current, value))

    def augment_item(self, number: int, owner: Any, index: Any, op: str, value: Any) -> None:
        if self.is_device(owner) or self.touches(index):
            self._op(-abs(number), lambda: operator.setitem(owner, index, INPLACE[op](owner[index], value)))
            return
        owner[index] = self._augmented(number, op, owner[index], value)

    def _augmented(self, number: int, op: str, current: Any, value: Any) -> Any:
        if self.is_device(current):
            return self._op(number, lambda: INPLACE[op](current, value))
        return self._accumulate(number, op, current, value)

    def _accumulate(self, number: int, op: str, target: Any, value: Any) -> Any:
        if not self.touches(value):
            return self._native(INPLACE[op], target, value)
        value = self._take_values(number, None, {0: value}, text=False)[0]
        result = INPLACE[op](target, value)
        if is_device_type(type(result)):
            self.held[id(result)] = result
        return result

    def delete_item(self, number: int, owner: Any, index: Any) -> None:
        if self.is_device(owner) or self.touches(index):
            self._op(-abs(number), lambda: operator.delitem(owner, index))
        else:
            del owner[index]

    def delete_attribute(self, number: int, owner: Any, name: str) -> None:
        if self.is_device(owner):
            self._op(-abs(number), lambda: delattr(owner, name))
        else:
            delattr(owner, name)

    def context(self, number: int, manager: Any) -> Any:
        return _DeviceContext(self, abs(number), manager) if self.is_device(manager) else manager

    def leave(self, number: int, value: Any) -> None:
        raise LeaveLoop

    def once(self) -> Iterator[None]:
        """Runs the worker half's body one time; `break` leaves `flow` at "break"."""
        self.flow = "break"
        yield None


class _DeviceContext:
    """`with torch.no_grad():` and the like: entered on the worker, passed by in the notebook."""

    def __init__(self, runtime: Runtime, number: int, manager: Any) -> None:
        self.runtime, self.number, self.manager = runtime, number, manager
        self.entered: list[bool] = []

    def __enter__(self) -> Any:
        def act() -> Any:
            self.entered.append(True)
            return self.manager.__enter__()

        return self.runtime._op(self.number, act)

    def __exit__(self, *error: Any) -> Any:
        return self.manager.__exit__(*error) if self.entered else None
