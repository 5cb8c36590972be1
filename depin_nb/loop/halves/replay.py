"""The notebook half: the same body in the user's own frame, where device-side results come from a worker's log."""

from __future__ import annotations

import re
import types
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch

from ...core.codec import decode
from ...core.errors import CodecError, ReplayError
from .. import output
from ..source import Remote
from ..split.callees import Callees
from ..values import is_device_type, is_value, stays, tensors_in
from .byvalue import unpack
from .calls import Act
from .classify import calls_back
from .entries import CALLED, HANDED, RAISE, SAID, SET, SINK, SIZE, VALUE
from .failures import rebuilt
from .runtime import Runtime

MAX_LOG_BYTES = 256 << 20
_MOST_ABSENT = 64  # places: they are only told of
_SCALARS = frozenset({int, float, str, bool, type(None)})
_REMOTE_NAMES = {"backward", "requires_grad", "grad_fn", "grad", "is_leaf", "retain_grad", "register_hook", "device"}
_RANDOM = re.compile("rand|dropout|bernoulli|multinomial|normal|uniform|exponential|poisson|backward|grad$")


class Replayer(Runtime):
    """Takes each device-side evaluation's plain result from the log, by its turn.

    `rehearsal`: without side effects (the self-check). `shared`: several workers, each of which has only seen its own part: what is made of
    the notebook's own tensors alone is computed here.
    """

    def __init__(self, callees: Callees, namespace: dict[str, Any], *, rehearsal: bool = False, shared: bool = False) -> None:
        super().__init__(callees)
        self.namespace = namespace
        self.rehearsal, self.shared = rehearsal, shared
        self.theirs: dict[int, Any] = {}  # containers of the notebook that only the worker fills (its hooks do)
        self.absent: dict[tuple[int, Any], tuple[Any, tuple[bool, Any]]] = {}  # places of plain objects whose values stayed on a worker
        self._entries: list[list[Any]] = []
        self._next = 0
        self._turns = 0
        self._callbacks: list[Any] = []
        self._calling_back: list[int] = []  # evaluations whose own entry comes after those of what they called

    def begin(self, log: bytes) -> None:
        """Takes up one iteration's log: shows what the making of its item said, and raises what that raised.

        Raises ReplayError if it isn't a log: its bytes come from a worker.
        """
        try:
            turns, entries = decode(log, max_bytes=MAX_LOG_BYTES)
        except (CodecError, ValueError, TypeError) as error:
            raise ReplayError(f"a worker's log can't be read: {error}", detail="codec") from None
        if type(turns) is not int or type(entries) is not list or not _are_entries(entries):
            raise ReplayError("a worker's log is malformed", detail="shape")
        self._turns, self._entries, self._next, self.turn = turns, entries, 0, 0
        self._fresh, self._callbacks, self._calling_back = {}, [], []
        self._hear()
        if entries and self._next < len(entries) and entries[self._next][0] == -1 and entries[self._next][2] == RAISE:
            raise rebuilt(entries[self._next][3], self.namespace)
        if entries and entries[-1][2] == RAISE and _is_ours(entries[-1][3]):
            raise rebuilt(entries[-1][3], self.namespace)  # a worker refuses a secret, say: the body here would not meet that

    def finish(self) -> None:
        """Checks that the log was used up exactly."""
        if self._next != len(self._entries) or self.turn != self._turns:
            raise ReplayError(
                f"the notebook took {self.turn} of {self._turns} device-side steps and {self._next} of {len(self._entries)} values",
                detail="not consumed",
            )

    def is_device(self, value: Any) -> bool:
        kind = type(value)
        return kind is Remote or is_device_type(kind) or (bool(self.theirs) and id(value) in self.theirs)

    # --- the log -----------------------------------------------------------------------------------------

    def _take(self, number: int) -> list[Any] | None:
        """The entry of this turn, None where it has none. What the evaluation said is shown, what it called back is run."""
        turn = self.turn
        self.turn = turn + 1
        if turn >= self._turns and not self._raising(turn):
            raise ReplayError("the notebook half went on where the worker had ended", detail=f"turn {turn}")
        entries = self._entries
        if self._next >= len(entries):
            return None
        entry = entries[self._next]
        if entry[2] == SAID or entry[2] == CALLED:
            self._aside(turn)
            if self._next >= len(entries):
                return None
            entry = entries[self._next]
        if entry[0] > turn or entry[0] in self._calling_back:
            return None
        if entry[0] != turn or (entry[1] != number and abs(entry[1]) != abs(number) and entry[2] != RAISE):
            raise ReplayError("the two halves took different steps", detail=f"turn {turn}: {entry[1]} is not {number}")
        self._next += 1
        return entry

    def _aside(self, turn: int) -> None:
        while self._next < len(self._entries):
            at, number, kind, value = self._entries[self._next]
            if kind == SAID and at == self.turn - 1:
                self._hear()
            elif kind == CALLED and at == self.turn and number == turn + 1:  # not of an evaluation around this one
                self._next += 1
                self._call_back(turn, value)
            else:
                return

    def _hear(self) -> None:
        while self._next < len(self._entries) and self._entries[self._next][2] == SAID and self._entries[self._next][0] == self.turn - 1:
            said = self._entries[self._next][3]
            self._next += 1
            if type(said) is list and len(said) == 2 and not self.rehearsal:
                output.show(said[0], said[1], self.namespace)

    def _call_back(self, turn: int, place: Any) -> None:
        if type(place) is not int or not 0 <= place < len(self._callbacks):
            raise ReplayError("a worker called back what the notebook half didn't hand out", detail=f"turn {turn}")
        function = self._callbacks[place]
        self._calling_back.append(turn)
        try:
            function(*_stand_ins(function))
        except Exception:
            if self._next < len(self._entries) and self._entries[self._next][0] == turn and self._entries[self._next][2] == RAISE:
                self._next += 1  # the same exception, as it came out of the evaluation
            raise
        finally:
            self._calling_back.pop()

    def _raising(self, turn: int) -> bool:
        return self._next < len(self._entries) and self._entries[self._next][0] == turn and self._entries[self._next][2] == RAISE

    # --- evaluations ------------------------------------------------------------------------------------

    def _stays(self) -> bool:
        """Takes the next evaluation at once if nothing of it comes back: most of them, so it costs as little as it can."""
        turn, at = self.turn, self._next
        if turn >= self._turns or (self.shared and self.held):
            return False
        if at < len(self._entries):
            entry = self._entries[at]
            if entry[0] <= turn or entry[2] == CALLED:
                return False
        self.turn = turn + 1
        return True

    def method(self, number: int, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name[-1] != "_" and self.is_device(owner) and not (args and calls_back(args)) and not kwargs:
            if self._stays():
                return Remote()
            if not self.shared:
                return self._op(number, _nothing)
        return super().method(number, owner, name, *args, **kwargs)

    def attribute(self, number: int, owner: Any, name: str) -> Any:
        if self.is_device(owner) and self._stays():
            return Remote()
        return super().attribute(number, owner, name)

    def _op(self, number: int, act: Callable[[], Any], *operands: Any) -> Any:
        entry = self._take(number)
        if entry is not None and entry[2] == RAISE:
            raise rebuilt(entry[3], self.namespace)
        if self.shared and self.held and operands and number > 0 and self._is_own(operands):
            return self._hold(act())
        if entry is None:
            return Remote()
        kind, value = entry[2], entry[3]
        if kind == VALUE and type(value) in _SCALARS:
            return value
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

    def _attribute(self, number: int, owner: Any, name: str) -> Any:
        return self._op(number if name not in _REMOTE_NAMES else -number, lambda: getattr(owner, name), owner)

    def _method(self, number: int, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.shared:
            return self._op(number, _nothing)
        random = name in _REMOTE_NAMES or _RANDOM.search(name)
        return self._op(-abs(number) if random else number, lambda: getattr(owner, name)(*args, **kwargs), owner, *args, *kwargs.values())

    def _elements(self, number: int, value: Any) -> list[Any]:
        if type(value) is not Remote:
            return super()._elements(number, value)
        count = self._op(abs(number), _nothing)
        if type(count) is not int:
            raise ReplayError("the two halves took different steps", detail="a length is missing")
        return [Remote() if self._stays() else self._op(abs(number), _nothing) for _ in range(count)]

    def _run(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *operands: Any) -> Any:
        if not kwargs and not calls_back(args) and self._stays():
            return Remote()
        if self.shared and _RANDOM.search(getattr(function, "__name__", "grad")):
            operands = ()
        return super()._run(number, function, args, kwargs, *operands)

    def _is_own(self, operands: tuple[Any, ...]) -> bool:
        """Whether an evaluation is made of tensors that the notebook has by value, and of plain values."""
        own = False
        for operand in operands:
            tensors = tensors_in(operand)
            if any(id(tensor) not in self.held for tensor in tensors):
                return False
            if not tensors and (self.is_device(operand) or _remote(operand)):
                return False
            own = own or bool(tensors)
        return own

    def _hold(self, value: Any) -> Any:
        if self.shared:
            for tensor in tensors_in(value):
                self.held[id(tensor)] = weakref.ref(tensor, self._forget(id(tensor)))
        return value

    def _forget(self, key: int) -> Callable[[Any], None]:
        held = self.held
        return lambda _: held.pop(key, None)

    def _values(self, entry: list[Any] | None, kind: int, values: dict[Any, Any]) -> dict[Any, Any]:
        if entry is None or entry[2] != kind or type(entry[3]) is not dict or not set(entry[3]) <= set(values):
            raise ReplayError("the two halves took different steps", detail="a value is missing")
        given = {key: unpack(wire, self.namespace) for key, wire in entry[3].items()}
        for value in given.values():
            self._hold(value)
        return {**values, **given}

    def _take_values(self, number: int, function: Any, values: dict[Any, Any], *, text: bool, limited: bool = False) -> dict[Any, Any]:
        given = self._values(self._take(number), SINK, values)
        if text and self.shared:  # a worker's text of what the notebook has itself is of that worker's part only
            given.update({key: str(value) for key, value in values.items() if self._is_own((value,))})
        return given

    def _stored(self, number: int, owner: Any, value: Any, step: tuple[bool, Any]) -> Any:
        kept = super()._stored(number, owner, value, step)
        if _remote(kept) and not self._is_fresh(owner) and len(self.absent) < _MOST_ABSENT:
            key = step[1] if type(step[1]) in _SCALARS else type(step[1])
            self.absent.setdefault((id(owner), key), (owner, step))
        return kept

    def _mutate(self, number: int, owner: Any, act: Act, values: dict[Any, Any], *, forced: bool = False) -> Any:
        entry = self._take(number)
        if entry is not None and entry[2] == RAISE:
            raise rebuilt(entry[3], self.namespace)
        if entry is None or entry[2] != HANDED:
            if entry is not None:
                self._next -= 1
                self.turn -= 1
                return self._op(number, lambda: None)
            return Remote()
        given = self._values(entry, HANDED, values)
        if type(owner) is Remote or any(_remote(value) for value in given.values()):
            return Remote()
        return self._hold(act(given))

    def _silent(self, function: Any) -> bool:
        return self.rehearsal and stays(function)

    def _calling(self, function: Any) -> Callable[..., Any]:
        inner = function if self.callees.is_instrumented(function) else self.callees.compiled(function, self)
        if inner is not None:
            self._callbacks.append(inner)
        return cast("Callable[..., Any]", function)


def _are_entries(entries: list[Any]) -> bool:
    for entry in entries:
        if type(entry) is not list or len(entry) != 4:
            return False
        turn, number, kind, _ = entry
        if type(turn) is not int or type(number) is not int or type(kind) is not int:
            return False
    return True


def _nothing() -> None: ...


def _remote(value: Any, depth: int = 0) -> bool:
    if type(value) is Remote:
        return True
    if depth > 6 or not isinstance(value, (list, tuple, dict, set)):
        return False
    return any(_remote(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value))


def _stand_ins(function: Any) -> list[Remote]:
    """As many arguments as a called-back function takes: what it gets is device-side."""
    code: types.CodeType = function.__code__
    needed = code.co_argcount - len(function.__defaults__ or ())
    return [Remote() for _ in range(needed)]


def _is_ours(described: Any) -> bool:
    return isinstance(described, dict) and str(described.get("type")).startswith("depin_nb.core.errors.")
