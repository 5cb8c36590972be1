"""`%depin debug`: a failing lease run again in this kernel, on copies, so that a debugger can look at the user's own frames.

`keep` notes what a failing entry had; `rerun` opens its program as a worker does and runs its iterations up to the failing one. The user's
objects and the random generators stay as they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.errors import UsageError
from ..core.lease import EntrySpec, Lease, Unit
from ..core.state import State
from .halves.byvalue import nbytes
from .halves.failures import is_user_file, users_own
from .halves.record import WorkerHalf
from .ship.capture import Shipment
from .source import pack

MAX_KEPT_BYTES = 64 << 20  # of items that travelled by value; beyond that the iterations before the failing lease can't be repeated


@dataclass(frozen=True)
class Failed:
    """An entry that failed: its program, a state, and the units from that state on, the failing one last."""

    shipment: Shipment
    state: State
    units: tuple[Unit, ...]
    spec: EntrySpec


class Trail:
    """What an entry keeps while it runs: the state that it was opened with, and what has been replayed since."""

    def __init__(self, shipment: Shipment, state: State, spec: EntrySpec) -> None:
        self.shipment, self.state, self.spec = shipment, state, spec
        self._units: list[tuple[int, Any, int]] = []
        self._part = 0
        self._bytes = 0

    def part(self) -> None:
        """A new lease's iterations follow."""
        self._part = len(self._units)

    def passed(self, index: int, data: Any, samples: int) -> None:
        self._units.append((index, data, samples))
        self._bytes += _size(data)
        if self._bytes > MAX_KEPT_BYTES:
            self._units, self._part = self._units[self._part :], 0
            self._bytes = sum(_size(data) for _, data, _ in self._units)

    def failed(self, newest: State | None) -> Failed:
        """`newest`: the last merge. With several workers the failing lease began there; one worker's whole entry is repeated exactly."""
        solo = self.spec.strategy.solo
        units = self._units if solo else self._units[self._part :]
        return Failed(
            self.shipment, self.state if solo or newest is None else newest, tuple(Unit(i, pack(d), n) for i, d, n in units), self.spec
        )


def _size(data: Any) -> int:
    """About how many bytes a unit's data takes; most are lists of indices."""
    if type(data) is not list:
        return 8 if type(data) is int else nbytes(data)
    return 8 * len(data) if data and type(data[0]) is int else sum(map(_size, data))


_last: list[Failed] = []


def keep(failed: Failed | None) -> None:
    """Remembers the newest failure; None forgets it (another entry runs)."""
    _last[:] = [] if failed is None else [failed]


def rerun(failed: Failed | None = None) -> BaseException | None:
    """The exception that the lease raises here, with its frames; None when it doesn't repeat. Raises UsageError when nothing has failed."""
    if failed is None:
        if not _last:
            raise UsageError("no run of this kernel has failed in its loop", hint="Run the cell that fails under `%%depin train` first.")
        failed = _last[0]
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        half = WorkerHalf(failed.shipment.program, failed.shipment.blobs.__getitem__)
        half.keeps_errors = True
        half.load(failed.state)
        lease = Lease("debug", "", 0, 0, failed.units, base_iteration=failed.units[0].index)
        outcome = half.run(lease, failed.spec)
        error = half.recorder.error if outcome.exit == "error" else None
        return None if error is None else _at_users_frame(users_own(error))
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


def _at_users_frame(error: BaseException) -> BaseException:
    """Without a library's frames below the user's last one: that is where a debugger should stand."""
    trace, last = error.__traceback__, None
    while trace is not None:
        if is_user_file(trace.tb_frame.f_code.co_filename):
            last = trace
        trace = trace.tb_next
    if last is not None:
        last.tb_next = None
    return error
