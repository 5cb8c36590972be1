"""The worker's answers to instrumented code: every device-side evaluation is executed, and what plain code needs of it is logged."""

from __future__ import annotations

import functools
import sys
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch

from ...core.errors import ShipError
from .. import output
from ..ship.program import Program
from ..values import Ghost, is_device_type, is_metric_type, is_value, speaks, stays, tensors_in
from .byvalue import MAX_STORED_BYTES, copied, nbytes, pack
from .calls import Act
from .entries import CALLED, HANDED, RAISE, SAID, SET, SINK, SIZE, VALUE
from .failures import described
from .runtime import Runtime
from .statements import LeaveLoop

MAX_HANDED_BYTES = 64 << 20  # by value, an iteration
_SCALARS = frozenset({int, float, str, bool, type(None), complex, bytes})
_OWNED = frozenset({list, dict, set})


class GangAborted(BaseException):
    """A rank of the gang was lost: the lease is dropped and its units go out again. No `except Exception` of a user's body stops it."""


class Recorder(Runtime):
    """Executes device-side evaluations and logs their plain results."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.callees)
        self.accumulators = frozenset(program.accumulators)
        self.log: list[list[Any]] = []
        self.inside = 0  # the turn of the evaluation that is going on, and 1; within it everything is device-side
        self.owned: dict[int, Any] = {}  # containers and objects that device-side evaluations returned
        self.kept: dict[int, Any] = {}  # weak references to tensors that the notebook has too
        self.error: BaseException | None = None
        self._iteration = 0
        self._handed_bytes = self._said_bytes = self._lease_bytes = 0
        self._callbacks: list[Any] = []
        self._clocks = {getattr(time, n): v - getattr(time, n)() + time.time() for n, v in program.flags.get("clocks", {}).items()}
        self._keep_known(program)

    def _keep_known(self, program: Program) -> None:
        """Tensors that the notebook has as well and no model holds: sums, counts, matrices on plain objects."""
        rooted = {id(t) for module in program.roots.modules.values() for t in (*module.parameters(), *module.buffers())}
        for tensor in _plain_tensors([v for n, v in program.env.items() if n[:2] != "__"]):
            if id(tensor) not in rooted and not tensor.requires_grad:
                self._keep(tensor)

    def _keep(self, value: Any) -> None:
        key, kept = id(value), self.kept
        try:
            kept[key] = weakref.ref(value, lambda _: kept.pop(key, None))
        except TypeError:
            kept[key] = value

    def begin_lease(self) -> None:
        self._lease_bytes = 0

    def start(self) -> None:
        """A new iteration: what is still referred to stays what it was."""
        self.turn, self.log, self.error = 0, [], None
        self._iteration += 1
        self._handed_bytes = self._said_bytes = 0
        if self.owned:
            owned = self.owned
            for key in list(owned):
                if sys.getrefcount(owned[key]) <= 2:  # only this dict has it, and the question itself
                    del owned[key]
        if self._fresh:
            self._fresh = {}
        self._callbacks = []

    def own(self, value: Any) -> Any:
        """Marks a value (a batch, say) as device-side whatever its type."""
        if type(value) not in _SCALARS and not is_device_type(type(value)):
            self.owned[id(value)] = value
        return value

    def is_device(self, value: Any) -> bool:
        return is_device_type(type(value)) or (id(value) in self.owned and type(value) not in _SCALARS)

    # --- evaluations ------------------------------------------------------------------------------------

    def _op(self, number: int, act: Callable[[], Any], *operands: Any) -> Any:
        if self.inside:
            return act()
        turn = self.turn
        self.turn = turn + 1
        self.inside = turn + 1
        try:
            value = act()
        except (GangAborted, LeaveLoop):
            raise
        except BaseException as error:
            self.log.append([turn, abs(number), RAISE, described(error)])
            raise
        finally:
            self.inside = 0
        kind = type(value)
        if kind in _SCALARS:
            if number > 0:
                self.log.append([turn, number, VALUE, value])
            return value
        if is_device_type(kind):
            return value
        return self._classified(turn, number, value)

    def _classified(self, turn: int, number: int, value: Any) -> Any:
        """Plain by nature: into the log, as it is now. Else it is the device side's own."""
        if not is_value(value):
            return self.own(value)
        if number > 0:
            kind, wire = VALUE, value
            if isinstance(value, torch.Size):
                kind, wire = SIZE, list(value)
            elif type(value) is set:
                kind, wire = SET, list(value)
            self.log.append([turn, number, kind, copied(wire)])
        return value

    def _attribute(self, number: int, owner: Any, name: str) -> Any:
        if self.inside or not isinstance(owner.__dict__.get(name) if hasattr(owner, "__dict__") else None, tuple(_OWNED)):
            return self._op(number, lambda: getattr(owner, name), owner)
        # a list, dict or set that a device-side object keeps is the device side's own: what it holds may have graphs
        return self.own(self._op(-abs(number), lambda: getattr(owner, name), owner))

    def _impure(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        offset = self._clocks.get(function) if isinstance(function, types.BuiltinFunctionType) else None
        if offset is None:
            return self._op(number, lambda: function(*args, **kwargs))
        return self._op(number, lambda: function() + offset)  # on the notebook's clock

    def _take_values(self, number: int, function: Any, values: dict[Any, Any], *, text: bool, limited: bool = False) -> dict[Any, Any]:
        if self.inside:
            return values
        turn, self.turn = self.turn, self.turn + 1
        if text:
            texts = {key: str(value) for key, value in values.items()}
            self.log.append([turn, abs(number), SINK, {key: [t, {"types": [], "graphs": []}] for key, t in texts.items()}])
            return values
        given = self._packed(values.items(), MAX_STORED_BYTES if limited else None, function)
        for key in given:
            for tensor in tensors_in(values[key]):
                self._keep(tensor)
        self.log.append([turn, abs(number), SINK, given])
        return values

    def _packed(self, items: Iterable[tuple[Any, Any]], most: int | None, function: Any = None) -> dict[Any, Any]:
        """Wires of the values that can be handed to the notebook; those larger than `most` stay away. Raises ShipError past the bound."""
        given: dict[Any, Any] = {}
        for key, value in items:
            size = nbytes(value)
            if most is not None and size > most:
                continue
            self._handed_bytes += size
            if self._handed_bytes > MAX_HANDED_BYTES:
                name = getattr(function, "__name__", "")
                raise ShipError(
                    f"an iteration hands more than {MAX_HANDED_BYTES >> 20} MB to the notebook{f' (`{name}`)' if name else ''}",
                    name=name,
                    kind="by value",
                    hint="Do this between epochs, after the loop, where the notebook has the weights itself; or keep a smaller part of it.",
                )
            try:
                given[key] = pack(value)
            except TypeError:
                continue
        return given

    def _mutate(self, number: int, owner: Any, act: Act, values: dict[Any, Any], *, forced: bool = False) -> Any:
        if self.inside:
            return act(values)
        touched = {key: value for key, value in values.items() if self.touches(value)}
        if not forced and (id(owner) not in self.kept or nbytes(list(touched.values())) > MAX_STORED_BYTES):
            return self._op(number, lambda: act(values))
        turn, self.turn = self.turn, self.turn + 1
        given = self._packed(touched.items(), None)
        self.inside = turn + 1
        try:
            result = act(values)
        except Exception as error:
            self.log.append([turn, abs(number), RAISE, described(error)])
            raise
        finally:
            self.inside = 0
        self.log.append([turn, abs(number), HANDED, given])
        if is_device_type(type(result)):
            self._keep(result)
        return result

    def _silent(self, function: Any) -> bool:
        if self.inside and speaks(function):
            return False  # within a callback of an opaque evaluation: it is taken up as that one's output
        return stays(function)

    def _calling(self, function: Any) -> Callable[..., Any]:
        """A function of the body's as a device-side evaluation gets it: each call of it is logged, and run by the notebook too."""
        inner = function if self.callees.is_instrumented(function) else self.callees.compiled(function, self)
        if inner is None or self.inside:
            return cast("Callable[..., Any]", function)
        place, iteration = len(self._callbacks), self._iteration
        self._callbacks.append(inner)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if self._iteration != iteration or not self.inside:
                return inner(*args, **kwargs)
            self.log.append([self.turn, self.inside, CALLED, place])
            before, self.inside = self.inside, 0
            try:
                return inner(*args, **kwargs)
            finally:
                self.inside = before

        return called

    # --- what is said within an evaluation ----------------------------------------------------------------

    def said(self, channel: str, payload: Any) -> None:
        """Takes up what the lease's thread printed, warned or logged; plain code's own output the notebook makes itself."""
        if not self.inside:
            return
        room = min(output.MAX_ITERATION_BYTES - self._said_bytes, output.MAX_LEASE_BYTES - self._lease_bytes)
        if room <= 0:
            return
        part, size = output.cut(channel, payload, room)
        self._said_bytes += size
        self._lease_bytes += size
        last = self.log[-1] if self.log else None
        turn = self.turn - 1
        if part is None or size >= room:
            self._said_bytes = output.MAX_ITERATION_BYTES
            self.log.append([turn, 0, SAID, [output.OUT, (part if isinstance(part, str) else "") + output.CUT]])
        elif isinstance(part, str) and last is not None and last[2] == SAID and last[0] == turn and last[3][0] == channel:
            last[3][1] += part
        else:
            self.log.append([turn, 0, SAID, [channel, part]])


def _plain_tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """Tensors that plain containers and plain objects hold."""
    found: list[torch.Tensor] = []
    seen: set[int] = set()
    queue = [(value, 0) for value in values]
    while queue:
        value, depth = queue.pop()
        if id(value) in seen or type(value) in _SCALARS:
            continue
        seen.add(id(value))
        if type(value) is torch.Tensor:
            found.append(value)
        elif is_metric_type(type(value)):
            found += list(value.buffers()) if isinstance(value, torch.nn.Module) else []
            queue += [(v, depth + 1) for v in vars(value).values()]
        elif depth > 4 or isinstance(value, (Ghost, type, types.ModuleType, types.FunctionType, np.ndarray)) or is_device_type(type(value)):
            continue
        elif isinstance(value, dict):
            queue += [(v, depth + 1) for v in list(value.values())[:256]]
        elif isinstance(value, (list, tuple, set, deque)):
            queue += [(v, depth + 1) for v in list(value)[-256:]]
        elif hasattr(value, "__dict__"):
            queue += [(v, depth + 1) for v in vars(value).values()]
    return found
