"""What instrumented statements ask: stores, augmented assignments, deletions, `with`, and leaving the loop."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..values import INPLACE
from .calls import Calls


class LeaveLoop(BaseException):
    """The worker half met `return`: the loop ends here."""


class Statements(Calls):
    """Assignments to attributes and items, and everything else that isn't an expression."""

    accumulators: frozenset[str]
    flow: str

    def set_attribute(self, number: int, owner: Any, name: str, value: Any) -> None:
        if self.is_device(owner):
            self._op(-abs(number), lambda: setattr(owner, name, value))
        else:
            setattr(owner, name, self._stored(number, owner, value, (False, name)))

    def set_item(self, number: int, owner: Any, index: Any, value: Any) -> None:
        if self.is_device(owner) or self.touches(index) or (isinstance(owner, np.ndarray) and self.touches(value)):
            self._set_item(number, owner, index, value)
        else:
            owner[index] = self._stored(number, owner, value, (True, index))

    def _set_item(self, number: int, owner: Any, index: Any, value: Any) -> None:
        def act(given: dict[Any, Any]) -> None:
            owner[given[0]] = given[1]

        self._mutate(-abs(number), owner, act, {0: index, 1: value}, forced=not self.is_device(owner))

    def _stored(self, number: int, owner: Any, value: Any, step: tuple[bool, Any]) -> Any:
        """A value as a plain object keeps it: small device-side values arrive in the notebook by value.

        `step`: where in the owner, as (is an item, name or key).
        """
        if not self.touches(value) or self._is_fresh(owner):
            return value
        return self._take_values(number, None, {0: value}, text=False, limited=True).get(0, value)

    def augment(self, number: int, op: str, target: Any, value: Any, name: str) -> Any:
        if isinstance(target, torch.Tensor) and target.is_leaf and target.requires_grad:
            self._op(-abs(number), lambda: INPLACE[op](target, value))
            return target  # in place: the notebook's own tensor, which the merged weights are written into
        if not (self.is_device(target) or self.touches(value)):
            return self._native(INPLACE[op], target, value)
        if type(target) in (list, set, dict):
            if self._is_fresh(target):
                return self._native(INPLACE[op], target, value)
            return self._augmented(number, op, target, value, forced=True)
        return self._augmented(number, op, target, value, forced=bool(name) and name in self.accumulators)

    def augment_attribute(self, number: int, owner: Any, name: str, op: str, value: Any) -> None:
        if self.is_device(owner):
            self._op(-abs(number), lambda: setattr(owner, name, INPLACE[op](getattr(owner, name), value)))
            return
        current = getattr(owner, name)
        if self.is_device(current) or self.touches(value):
            setattr(owner, name, self._augmented(number, op, current, value, forced=not self.is_device(current)))
        else:
            setattr(owner, name, self._native(INPLACE[op], current, value))

    def augment_item(self, number: int, owner: Any, index: Any, op: str, value: Any) -> None:
        if self.is_device(owner) or self.touches(index):

            def act(given: dict[Any, Any]) -> None:
                owner[given[0]] = INPLACE[op](owner[given[0]], given[1])

            self._mutate(-abs(number), owner, act, {0: index, 1: value}, forced=not self.is_device(owner))
            return
        current = owner[index]
        if self.is_device(current) or self.touches(value):
            owner[index] = self._augmented(number, op, current, value, forced=not self.is_device(current))
        else:
            owner[index] = self._native(INPLACE[op], current, value)

    def _augmented(self, number: int, op: str, target: Any, value: Any, *, forced: bool) -> Any:
        result = self._mutate(number, target, lambda given: INPLACE[op](target, given[0]), {0: value}, forced=forced)
        in_place = isinstance(target, torch.Tensor) and op != "matmult"  # `a @= b` alone makes another tensor
        return target if in_place else result

    def delete_item(self, number: int, owner: Any, index: Any) -> None:
        if self.is_device(owner) or self.touches(index):
            self._mutate(-abs(number), owner, lambda given: operator.delitem(owner, given[0]), {0: index}, forced=not self.is_device(owner))
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

    def __init__(self, runtime: Statements, number: int, manager: Any) -> None:
        self.runtime, self.number, self.manager = runtime, number, manager
        self.entered: list[bool] = []

    def __enter__(self) -> Any:
        def act() -> Any:
            self.entered.append(True)
            return self.manager.__enter__()

        return self.runtime._op(self.number, act)

    def __exit__(self, *error: Any) -> Any:
        return self.manager.__exit__(*error) if self.entered else None
