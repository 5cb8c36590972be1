"""Runs one lease after the other in this process: fetches what a lease needs, runs the worker half, makes the report."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ..core.errors import DepinError, HubError, OutOfMemory
from ..core.lease import SOLO_SEATS, EntrySpec, Lease, Report
from ..core.memory import out_of_memory
from ..core.state import INNER, STEP, State
from .blobs import BlobCache
from .device import Pacer
from .link import Dropped, Go
from .residuals import Residuals
from .transfer import Cache, Incoming
from .versions import MAX_STATE_BYTES, Versions

if TYPE_CHECKING:
    import torch

    from ..loop.halves.record import Outcome

MAX_SEATS = 2  # runs, spread over several workers, that take turns here without opening their programs again
MAX_UNSEATED = 1000  # solo entries remembered that lost their seat

Ask = Callable[..., Any]  # (op, go, **request) -> answer; see HubLink.ask


class Half(Protocol):
    """What a lease is run by: `loop.record.WorkerHalf`."""

    def load(self, state: State) -> None: ...
    def state(self) -> State: ...
    def run(
        self,
        lease: Lease,
        spec: EntrySpec,
        *,
        go: Callable[[], bool],
        paced: Callable[[float], None],
        reduce: Callable[[int, int, list[torch.Tensor | None]], list[torch.Tensor | None]] | None,
    ) -> Outcome: ...


OpenHalf = Callable[[bytes, Callable[[str], bytes]], Half]


def open_half(program: bytes, blob: Callable[[str], bytes]) -> Half:
    """The real one. Opens a program, which only the kernel wrote."""
    from ..loop.halves.record import WorkerHalf

    return WorkerHalf(program, blob)


@dataclass
class Seat:
    """What this worker keeps of one run's entry between its leases.

    `version`, `state`: the version that the half's objects stand at and a copy of it, None when they stand at none (solo only).
    `inner`: its own optimizer state (INNER and STEP slots), also from the entry before where the notebook left it alone.
    `line` grows with every report that is refused: what was built on such a one is of an older line.
    """

    spec: EntrySpec
    half: Half | None = None
    version: int | None = None
    state: State | None = None
    inner: State = field(default_factory=State)
    line: int = 0


@dataclass(frozen=True)
class Finished:
    """A lease that was run: its report, and what its seat held before it (`inner`, `residual`), should the hub refuse it."""

    lease: Lease
    report: Report
    seat: Seat
    state: State
    lost: dict[str, torch.Tensor]  # by compression
    line: int
    inner: State
    residual: dict[str, torch.Tensor]


class LeaseRunner:
    """One lease at a time (torch's generators belong to the process): call `run` from one thread, `refused` from any.

    The next lease may be run before the report of the former is answered: what a lease leaves behind is the next one's beginning at once.
    """

    def __init__(
        self,
        ask: Ask,
        pacer: Pacer | None = None,
        *,
        opener: OpenHalf = open_half,
        blobs: BlobCache | None = None,
        residuals: Residuals | None = None,
        incoming: Incoming | None = None,
    ) -> None:
        self._ask = ask
        self._pacer = pacer
        self._opener = opener
        self._blobs = blobs or BlobCache()
        self._residuals = residuals or Residuals()
        self._incoming = incoming or Incoming(ask, Cache())
        self._versions = Versions()
        self._seats: OrderedDict[tuple[str, int], Seat] = OrderedDict()
        self._unseated: OrderedDict[tuple[str, int], None] = OrderedDict()  # solo entries that can't go on here
        self._lock = threading.Lock()  # of what seats keep

    def run(self, lease: Lease, go: Go) -> Finished | None:
        """Runs the lease; None when it was dropped (not wanted any more, or its gang is no more). Raises what went wrong otherwise."""
        seat: Seat | None = None
        line = 0
        try:
            seat = self._seat(lease, go)
            with self._lock:
                line = seat.line
            finished = self._run(lease, seat, line, go)
        except Dropped:
            finished = None
        except BaseException:
            self._leave(seat)
            raise
        if finished is None or not self._adopt(finished):
            self._leave(seat)
            return None
        return finished

    def accepted(self, finished: Finished) -> None:
        """The hub took the report: what compression left out of it outlives this process."""
        if finished.seat.spec.strategy.name != "sync":
            self._residuals.accept(finished.lease.run_id, finished.lease.lease_id, finished.lost)

    def refused(self, finished: Finished) -> None:
        """The hub did not take the report: what the objects hold now counts for nothing, nor does what was built on it since."""
        seat, run_id = finished.seat, finished.lease.run_id
        self._residuals.drop(run_id, finished.lease.lease_id)
        with self._lock:
            if seat.line != finished.line:  # it was built on one that was refused before
                return
            seat.inner = finished.inner
            self._residuals.put(run_id, finished.residual)
            seat.line += 1
            self._leave(seat)

    def _adopt(self, finished: Finished) -> bool:
        """This worker's objects are the basis of what comes next; False when what they were built on was refused meanwhile."""
        seat, strategy = finished.seat, finished.seat.spec.strategy
        with self._lock:
            if seat.line != finished.line:
                return False
            if strategy.solo and strategy.bits == 32:
                # its change alone is the next version, bit for bit
                seat.version, seat.state = finished.lease.base_version + 1, finished.state
            elif strategy.name != "sync":
                own = {name for name, kind in finished.state.kinds.items() if kind in (INNER, STEP)}
                seat.inner = State({n: finished.state.tensors[n] for n in own}, {n: finished.state.kinds[n] for n in own})
                self._residuals.put(finished.lease.run_id, finished.lost)
        return True

    @staticmethod
    def _leave(seat: Seat | None) -> None:
        """Closes the half: its objects stand in the middle of nowhere. What was kept from earlier leases stays."""
        if seat is not None:
            seat.half, seat.version, seat.state = None, None, None

    def _run(self, lease: Lease, seat: Seat, line: int, go: Go) -> Finished | None:
        from ..loop.halves.recorder import GangAborted
        from ..training.compress import encode_change

        strategy = seat.spec.strategy
        half = seat.half
        if half is None:  # refused just now
            return None
        with self._lock:
            inner, residual = seat.inner, self._residuals.of(lease.run_id)
        base = self._base(lease, seat, half, go)
        seat.version = None
        cpu_s, waited_s = time.thread_time(), 0.0

        def paced(seconds: float) -> None:
            nonlocal cpu_s, waited_s
            if self._pacer is not None:
                start_s = time.monotonic()
                go.wait(self._pacer.wait_s(seconds, time.thread_time() - cpu_s))
                waited_s += time.monotonic() - start_s
                cpu_s = time.thread_time()

        try:
            outcome = half.run(lease, seat.spec, go=go, paced=paced, reduce=self._reducer(lease, go) if lease.gang else None)
        except GangAborted:
            return None
        if outcome.stopped or not go():
            return None
        new = half.state()
        feeds_back = strategy.error_feedback and strategy.bits != 32
        change, lost = encode_change(
            base,
            new,
            bits=strategy.bits,
            residual=residual if feeds_back else None,
            include_inner=lease.final or strategy.bits == 32,
        )
        lost = lost if feeds_back else {}
        self._residuals.write(lease.run_id, lease.lease_id, lost)
        report = Report(
            lease_id=lease.lease_id,
            done=outcome.done,
            logs=tuple(outcome.logs),
            change=change,
            left=outcome.left,
            exit=outcome.exit,
            losses=tuple(outcome.losses),
            seconds=outcome.seconds + waited_s,
        )
        return Finished(lease, report, seat, new, lost, line, inner, residual)

    def _seat(self, lease: Lease, go: Go) -> Seat:
        key = (lease.run_id, lease.entry_id)
        seat = self._seats.get(key)
        if key in self._unseated:
            raise HubError(f"{lease.run_id}'s objects had to make room on this worker")
        if seat is None:
            before = self._seats.get((lease.run_id, lease.entry_id - 1))
            own = State() if before is None else before.inner
            answer = self._ask("depin_entry", go, run=lease.run_id, entry=lease.entry_id, own=bool(own.tensors))
            seat = self._seats[key] = Seat(EntrySpec.from_dict(answer["spec"]), inner=_inner(answer, own))
            self._make_room(key, seat.spec)
        self._seats.move_to_end(key)
        if seat.half is None:

            def blob(digest: str) -> bytes:
                return self._blobs.get(digest, lambda: self._incoming.blob(digest, lease.run_id, go))

            program = blob(seat.spec.program)
            seat.half = self._whole(program, blob, lease, go) if seat.spec.limit_s else self._opener(program, blob)
        return seat

    def _make_room(self, new: tuple[str, int], spec: EntrySpec) -> None:
        """Entries that are over, and beyond that those whose turn is the longest ago, lose their seats: solo ones, and the others."""
        solo = spec.strategy.solo
        for key in [k for k in self._seats if solo and k[0] == new[0] and k[1] < new[1]]:
            del self._seats[key]
        alike = [k for k, seat in self._seats.items() if seat.spec.strategy.solo == solo]
        for key in alike[: max(0, len(alike) - (2 * SOLO_SEATS if solo else MAX_SEATS))]:
            del self._seats[key]
            if solo:
                self._unseated[key] = None
        while len(self._unseated) > MAX_UNSEATED:
            self._unseated.popitem(last=False)

    def _whole(self, program: bytes, blob: Callable[[str], bytes], lease: Lease, go: Go) -> Half:
        """A whole cell: what it says goes to the hub as it comes."""
        from ..loop.whole.cell import WholeHalf

        def say(data: bytes) -> None:
            self._ask("depin_say", go, run=lease.run_id, lease=lease.lease_id, data=data)

        return WholeHalf(program, blob, say)

    def _base(self, lease: Lease, seat: Seat, half: Half, go: Go) -> State:
        """The lease's base version, loaded into the half. A solo worker that stands there goes on in its living objects."""
        state = seat.state
        if seat.version == lease.base_version and state is not None:
            return state
        ask, whole = partial(self._ask, go=go), partial(self._incoming.whole, run_id=lease.run_id, go=go)
        base = self._versions.get(ask, whole, lease.run_id, lease.base_version)
        half.load(overlaid(base, seat.inner))
        return base

    def _reducer(self, lease: Lease, go: Go) -> Callable[[int, int, list[torch.Tensor | None]], list[torch.Tensor | None]]:
        from ..loop.halves.recorder import GangAborted
        from ..training.allreduce import decode_grads, encode_grads

        def reduce(step: int, samples: int, grads: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
            # any failure but GangAborted would be taken for the user's own exception
            try:
                answer = self._ask(
                    "depin_reduce",
                    go,
                    run=lease.run_id,
                    gang=lease.gang,
                    step=step,
                    rank=lease.rank,
                    weight=samples,
                    data=encode_grads(grads),
                )
                if "abort" in answer:
                    raise GangAborted(f"the gang was given up: {answer['abort']}")
                means = decode_grads(answer["data"], max_bytes=MAX_STATE_BYTES, like=grads)
            except Dropped:
                raise GangAborted("the lease isn't wanted any more") from None
            except GangAborted:
                raise
            except DepinError as error:
                raise GangAborted(f"the gang's step failed: {error.message}") from error
            return list(means)

        return reduce


def _inner(answer: Mapping[str, Any], own: State) -> State:
    """The optimizer state that a new entry begins with, beside what its first version has: this worker's own, or what the hub gives."""
    from ..training.entering import inner_from_bytes

    if answer.get("own_inner"):
        return own
    data = answer.get("inner")
    return State() if data is None else inner_from_bytes(data, max_bytes=MAX_STATE_BYTES)


def overlaid(base: State, inner: State) -> State:
    """`base` with a worker's own optimizer state over it (slots that the base has too must still have the same shape)."""
    if not inner.tensors:
        return base
    own = {n: t for n, t in inner.tensors.items() if n not in base.tensors or base.tensors[n].shape == t.shape}
    return State({**base.tensors, **own}, {**base.kinds, **{n: inner.kinds[n] for n in own}}, base.plain)


def failure(lease: Lease, error: BaseException) -> Report:
    """The report of a lease that could not be run at all: nothing done, the reason in `extra`; the hub gives it to another worker."""
    text = error.message if isinstance(error, DepinError) else f"{type(error).__name__}: {error}"
    kind = type(error).__name__ if isinstance(error, DepinError) else HubError.__name__
    if out_of_memory(error):
        kind = OutOfMemory.__name__
    return Report(lease_id=lease.lease_id, done=0, logs=(), change=b"", extra={"failed": text[:2000], "type": kind})
