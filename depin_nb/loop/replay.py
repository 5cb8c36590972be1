"""The notebook half: the same body in the user's own frame, where device-side results come from a worker's log."""

from __future__ import annotations

import builtins
import linecache
from collections.abc import Callable
from typing import Any

import torch

from ..core import errors
from ..core.codec import decode
from ..core.errors import CodecError, RemoteError, ReplayError
from .callees import Callees
from .runtime import RAISE, SET, SINK, SIZE, VALUE, Runtime
from .source import Remote
from .values import is_device_type, is_value, stays

MAX_LOG_BYTES = 256 << 20


class Replayer(Runtime):
    """Takes each device-side evaluation's plain result from the log, by its turn. `rehearsal`: without side effects (the self-check)."""

    def __init__(self, callees: Callees, namespace: dict[str, Any], *, rehearsal: bool = False) -> None:
        super().__init__(callees)
        self.namespace = namespace
        self.rehearsal = rehearsal
        self._entries: list[list[Any]] = []
        self._next = 0
        self._turns = 0

    def begin(self, log: bytes) -> None:
        """Takes up one iteration's log. Raises ReplayError if it isn't one: its bytes come from a worker."""
        try:
            turns, entries = decode(log, max_bytes=MAX_LOG_BYTES)
        except (CodecError, ValueError, TypeError) as error:
            raise ReplayError(f"a worker's log can't be read: {error}", detail="codec") from None
        fits = (
            type(turns) is int
            and type(entries) is list
            and all(type(e) is list and len(e) == 4 and all(type(part) is int for part in e[:3]) for e in entries)
        )
        if not fits:
            raise ReplayError("a worker's log is malformed", detail="shape")
        self._turns, self._entries, self._next, self.turn = turns, entries, 0, 0

    def finish(self) -> None:
        """Checks that the log was used up exactly."""
        if self._next != len(self._entries) or self.turn != self._turns:
            raise ReplayError(
                f"the notebook took {self.turn} of {self._turns} device-side steps and {self._next} of {len(self._entries)} values",
                detail="not consumed",
            )

    def is_device(self, value: Any) -> bool:
        return type(value) is Remote or (is_device_type(type(value)) and id(value) not in self.held)

    def _take(self, number: int) -> list[Any] | None:
        turn, self.turn = self.turn, self.turn + 1
        if turn >= self._turns and not self._raising(turn):
            raise ReplayError("the notebook half went on where the worker had ended", detail=f"turn {turn}")
        if self._next < len(self._entries) and self._entries[self._next][0] <= turn:
            entry = self._entries[self._next]
            if entry[0] != turn or (abs(entry[1]) != abs(number) and entry[2] != RAISE):
                raise ReplayError("the two halves took different steps", detail=f"turn {turn}: {entry[1]} is not {number}")
            self._next += 1
            return entry
        return None

    def _raising(self, turn: int) -> bool:
        return self._next < len(self._entries) and self._entries[self._next][0] == turn and self._entries[self._next][2] == RAISE

    def _op(self, number: int, act: Callable[[], Any]) -> Any:
        entry = self._take(number)
        if entry is None:
            return Remote()
        kind, value = entry[2], entry[3]
        if kind == RAISE:
            raise rebuilt(value, self.namespace)
        try:
            if kind == SIZE:
                return torch.Size(value)
            if kind == SET:
                return set(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ReplayError(f"a worker's log is malformed: {error}", detail=f"kind {kind}") from None
        if kind != VALUE or not is_value(value):
            raise ReplayError("the two halves took different steps", detail=f"kind {kind}")
        return value

    def _take_values(self, number: int, function: Any, values: dict[Any, Any], *, text: bool, limited: bool = False) -> dict[Any, Any]:
        entry = self._take(number)
        if entry is None or entry[2] != SINK or type(entry[3]) is not dict or not set(entry[3]) <= set(values):
            raise ReplayError("the two halves took different steps", detail="a value is missing")
        for value in entry[3].values():
            for tensor in _tensors(value):
                self.held[id(tensor)] = tensor
        return {**values, **entry[3]}

    def _silent(self, function: Any) -> bool:
        return self.rehearsal and stays(function)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def rebuilt(described: Any, namespace: dict[str, Any]) -> BaseException:
    """A worker's exception as its own type, where the notebook knows that type; the user's lines follow as a note."""
    if type(described) is not dict or not all(type(described.get(k)) is str for k in ("type", "message")):
        return RemoteError("a worker failed and its report can't be read", type_name="?")
    name, message = described["type"], described["message"]
    arguments = described.get("args")
    kind = _known(name, namespace)
    error: BaseException
    if kind is None:
        error = RemoteError(f"{name}: {message}", type_name=name)
    else:
        try:
            error = kind(*arguments) if isinstance(arguments, list) else kind(message)
        except Exception:
            error = RemoteError(f"{name}: {message}", type_name=name)
    lines = []
    for frame in described.get("frames") or []:
        if isinstance(frame, list) and len(frame) == 3 and isinstance(frame[0], str) and isinstance(frame[1], int):
            text = linecache.getline(frame[0], frame[1]).strip()
            if text:
                lines.append(f"  {frame[2]}, line {frame[1]}: {text}")
    if len(lines) > 1:
        error.add_note("On the worker, innermost last:\n" + "\n".join(lines))
    return error


def _known(name: str, namespace: dict[str, Any]) -> type[BaseException] | None:
    """An exception class by name: Python's, torch's, ours or the user's own; never anything that isn't an exception."""
    found: Any = None
    if "." not in name:
        found = getattr(builtins, name, None)
    elif name.startswith("depin_nb.core.errors."):
        found = getattr(errors, name.rsplit(".", 1)[1], None)
    elif name.startswith("torch."):
        found = torch
        for part in name.split(".")[1:]:
            found = getattr(found, part, None)
    else:
        found = namespace.get(name.rsplit(".", 1)[1])
    return found if isinstance(found, type) and issubclass(found, Exception) else None
