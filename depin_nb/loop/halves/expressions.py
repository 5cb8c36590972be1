"""What instrumented expressions ask, decided once for both halves: which evaluations are device-side, which are plain."""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

from ...core.errors import ShipError
from ..values import BINARY, COMPARE, UNARY, Ghost, is_device_type

_SAMPLE = 64
_DEEPEST = 6
_PLAIN = frozenset({int, float, str, bool, type(None), complex, bytes})
_CONTAINERS = frozenset({list, tuple, dict, set, slice, OrderedDict, defaultdict, deque})


class Expressions:
    """Operators, attributes, items, conditions, iteration. `Runtime` adds calls and statements, the halves what an evaluation does."""

    ghosts: dict[int, Any]
    held: dict[int, Any]

    # --- the questions ----------------------------------------------------------------------------

    def is_device(self, value: Any) -> bool:
        return is_device_type(type(value))

    def touches(self, value: Any, depth: int = 0) -> bool:
        """Whether a device-side value is in `value` (containers are looked into; of long ones the two ends)."""
        kind = type(value)
        if kind in _PLAIN:
            return False
        if self.is_device(value):
            return True
        if kind not in _CONTAINERS and not (issubclass(kind, tuple) and hasattr(kind, "_fields")):
            return False
        if depth > _DEEPEST:
            return False
        if kind is slice:
            return any(self.is_device(v) for v in (value.start, value.stop, value.step))
        if not value:
            return False
        return any(self.touches(part, depth + 1) for part in ends(value))

    # --- what the halves do differently --------------------------------------------------------------

    def _op(self, number: int, act: Callable[[], Any], *operands: Any) -> Any:
        """A device-side evaluation. `operands`: the values that it is made of."""
        raise NotImplementedError

    def _native(self, act: Callable[..., Any], *operands: Any) -> Any:
        for operand in operands:
            if type(operand) is Ghost:
                if act is bool:
                    raise ShipError(f"the loop decides on {operand!r}", name=repr(operand), kind="ghost")
                return operand
        return act(*operands)

    def _is_fresh(self, container: Any) -> bool:
        """Whether the iteration itself made this container: it lives where the iteration does."""
        return False

    def _escapes(self, container: Any) -> None:
        """A container that the iteration made goes into one that outlives it: `seen.setdefault(name, [])`."""

    # --- expressions -----------------------------------------------------------------------------------

    def attribute(self, number: int, owner: Any, name: str) -> Any:
        if self.is_device(owner):
            return self._attribute(number, owner, name)
        return getattr(owner, name)

    def _attribute(self, number: int, owner: Any, name: str) -> Any:
        return self._op(number, lambda: getattr(owner, name), owner)

    def item(self, number: int, owner: Any, index: Any) -> Any:
        if self.is_device(owner) or self.touches(index):
            return self._op(number, lambda: owner[index], owner, index)
        return self._native(operator.getitem, owner, index)

    def binary(self, number: int, op: str, left: Any, right: Any) -> Any:
        if type(left) in _PLAIN and type(right) in _PLAIN:
            return BINARY[op](left, right)
        if not (self.touches(left) or self.touches(right)):
            return self._native(BINARY[op], left, right)
        return self._op(number, lambda: BINARY[op](left, right), left, right)

    def unary(self, number: int, op: str, value: Any) -> Any:
        return self._op(number, lambda: UNARY[op](value), value) if self.is_device(value) else self._native(UNARY[op], value)

    def compare(self, number: int, op: str, left: Any, right: Any) -> Any:
        if type(left) in _PLAIN and type(right) in _PLAIN:
            return COMPARE[op](left, right)
        if not (self.is_device(left) or self.touches(right)):
            return self._native(COMPARE[op], left, right)
        return self._op(number, lambda: COMPARE[op](left, right), left, right)

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
        if type(value) in _PLAIN:
            return bool(value)
        return bool(self._op(number, lambda: bool(value), value) if self.is_device(value) else self._native(bool, value))

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

        return str(self._op(number, lambda: act(value), value) if self.touches(value) else self._native(act, value))

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
        if pattern.count(None) == len(pattern):  # names alone, no groups and no star
            items = self._elements(number, value) if self.is_device(value) else value
            if type(items) in (list, tuple) and len(items) == len(pattern):
                return tuple(items)
            value = items
        star = next((i for i, part in enumerate(pattern) if part == "*"), None)
        if type(value) is Ghost:
            return tuple(value for _ in pattern)
        items = self._elements(number, value) if self.is_device(value) else list(value)
        if star is None and len(items) != len(pattern):
            if len(items) < len(pattern):
                raise ValueError(f"not enough values to unpack (expected {len(pattern)}, got {len(items)})")
            raise ValueError(f"too many values to unpack (expected {len(pattern)})")
        if star is not None:
            if len(items) < len(pattern) - 1:
                raise ValueError(f"not enough values to unpack (expected at least {len(pattern) - 1}, got {len(items)})")
            end = len(items) - (len(pattern) - star - 1)
            items = [*items[:star], items[star:end], *items[end:]]
        parts = [self.unpack(number, item, part) if isinstance(part, tuple) else item for item, part in zip(items, pattern, strict=True)]
        return tuple(parts) if star is None else (*parts[:star], *parts[star], *parts[star + 1 :])

    def _elements(self, number: int, value: Any) -> list[Any]:
        """The elements of a device-side value, each classified by itself."""
        items: list[Any] = []

        def count() -> int:
            items.extend(value)
            return len(items)

        n = self._op(abs(number), count, value)
        return [self._op(abs(number), lambda i=i: items[i], value) for i in range(n)]  # type: ignore[misc]

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

        def get() -> Any:
            return current[0]

        while self._op(number, advance, value):
            yield self._op(number, get, value)


def ends(value: Any) -> Any:
    """The parts of a container; of a long one the two ends."""
    parts = value.values() if isinstance(value, dict) else value
    if len(value) <= _SAMPLE:
        return parts
    if isinstance(value, (list, tuple, deque)):
        return [value[i] for i in (*range(8), *range(-8, 0))]
    return [part for part, _ in zip(parts, range(16), strict=False)]
