"""Reports of leases: hostile until checked; then a lease is accepted, refused, or handed in again later."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from depin_nb.core.errors import CodecError, HubError
from depin_nb.core.lease import Report
from depin_nb.core.parts import Buffer
from depin_nb.hub.aggregation import Parked
from depin_nb.hub.leases.entry import Entry, LeaseRecord
from depin_nb.hub.leases.members import Member
from depin_nb.hub.run import Run
from depin_nb.hub.versions.spool import Held
from depin_nb.training.compress import read_change
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.core.state import State
    from depin_nb.hub.coordinator import Coordinator

log = logging.getLogger(__name__)
MAX_LOG_BYTES = 64 << 20
EXITS = ("", "break", "return", "error")
LATE = "this lease is no longer yours"
NOT_YET = "its run waits for its notebook"
# why a program can't be run at all, in a worker's own words
UNABLE = ("DatasetDiffers", "MissingPackage", "WithheldError", "ShipError", "OutOfMemory")


def checked_report(data: Any, record: LeaseRecord) -> Report:
    """The report, in the shape and sizes that its lease allows. Raises CodecError otherwise."""
    try:
        report = Report.from_dict(data)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        raise CodecError("not a report") from None
    count = len(record.lease.units)
    if report.done == 0 and isinstance(report.extra, dict) and isinstance(report.extra.get("failed"), str):
        said, kind = report.extra["failed"][:1000], report.extra.get("type")
        raise CodecError(f"the lease could not be run: {said}", said=said, kind=kind if kind in UNABLE else "")
    if type(report.done) is not int or not 1 <= report.done <= count or report.exit not in EXITS:
        raise CodecError("a report says what its lease doesn't allow")
    if report.done != count and not report.exit:
        raise CodecError(f"{report.done} of {count} iterations were done and the loop wasn't left")
    if len(report.logs) != report.done or not all(isinstance(text, bytes) for text in (*report.logs, report.left, report.change)):
        raise CodecError("a report has a log for each iteration, as bytes")
    if sum(map(len, report.logs)) + len(report.left) > MAX_LOG_BYTES:
        raise CodecError(f"a lease's logs are more than {MAX_LOG_BYTES >> 20} MiB", hint="Keep less per iteration, or print less.")
    if isinstance(report.seconds, bool) or not isinstance(report.seconds, (int, float)) or not 0 <= report.seconds < 1e9:
        raise CodecError("a report's time is malformed")
    indices = {u.index for u in record.lease.units[: report.done]}
    seen = {index: loss for index, loss in report.losses[: 4 * report.done] if index in indices and math.isfinite(loss)}
    return Report(
        report.lease_id,
        report.done,
        report.logs,
        report.change,
        report.left,
        report.exit,
        tuple(sorted(seen.items())),
        float(report.seconds),
    )


def _sent(report: dict[str, Any]) -> Any:
    """What a report says of a change that came in parts, None where the change is in the report."""
    extra = report.get("extra")
    return extra.get("sent") if isinstance(extra, dict) and not report.get("change") else None


def _at(report: dict[str, Any]) -> Any:
    """Where a report says that its change is, None where it is here."""
    extra = report.get("extra")
    return extra.get("at") if isinstance(extra, dict) and not report.get("change") else None


class Reports:
    """The part of the coordinator that takes reports. Made by WorkerOps."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    async def take(self, member: Member, report: dict[str, Any]) -> dict[str, Any]:
        """Takes a lease's report if its worker still holds the lease; what it says is checked before it counts."""
        hub = self._hub
        lease_id = report.get("lease_id") if isinstance(report, dict) else None
        if isinstance(lease_id, str) and lease_id not in member.held:
            lease_id = hub.taking.welcome(member, lease_id)
        run = hub.runs.get(member.held.get(lease_id, "")) if isinstance(lease_id, str) else None
        entry = run.entry if run is not None else None
        record = entry.record(lease_id) if entry is not None and isinstance(lease_id, str) else None
        if isinstance(lease_id, str) and record is None and hub.returning.expected(member, report["lease_id"]):
            return {"accepted": False, "reason": NOT_YET, "again": True}
        if run is None or entry is None or record is None or record.state is not LeaseState.LEASED:
            return {"accepted": False, "reason": LATE}
        record.go(Trigger.SUBMIT)
        data: Buffer
        change: Held | Parked | None
        now = hub.clock.monotonic()
        try:
            checked = checked_report(report, record)
            run.bytes_up += len(checked.change) + len(checked.left) + sum(map(len, checked.logs))
            await self._earlier_merges(run, entry, record)
            data, parked = checked.change, _at(report)
            if parked is not None:
                change = await hub.aggregation.checked(run, record, parked, _sent(report))
                if change is None and record.at(LeaseState.SUBMITTED):
                    hub.aggregation.out_again(run, record)
                    return {"accepted": False, "direct": True, "reason": "its aggregator can't take it"}
            elif (sent := _sent(report)) is not None:
                data = await hub.transfers.received(run, member, sent)
            if parked is None:
                base = run.weights
                if record.lease.base_version != run.version:  # late: it is read against the version that it was made from
                    base = await hub.in_executor(hub.states.open, run.run_id, record.lease.base_version)
                change = await hub.in_executor(self._held, data, base, hub.change_limit(run), entry.spec.strategy.bits)
        except CodecError as error:
            return self._rejected(run, entry, record, error)
        except (HubError, OSError) as error:
            return self._unread(run, entry, record, error)
        finally:
            if _at(report) is None and (sent := _sent(report)) is not None:
                hub.transfers.used(run, member, sent)
        if not record.at(LeaseState.SUBMITTED):
            return {"accepted": False, "reason": record.reason or LATE}
        assert change is not None
        run.change_bytes = run.change_bytes if record.lease.final else change.nbytes
        self._accepted(run, entry, record, checked, change, now)
        return {"accepted": not record.at(LeaseState.OPEN), "reason": record.reason}

    def _held(self, data: Buffer, base: State, max_bytes: int, bits: int) -> Held:
        """The change in the spool, as it came; checked, so that nothing in it can be wrong at its merge. Raises CodecError."""
        held = self._hub.spool.put(data)
        read_change(held.open()[0], base, max_bytes=max_bytes, bits=bits)
        return held

    async def _earlier_merges(self, run: Run, entry: Entry, record: LeaseRecord) -> None:
        """A solo lease may have gone out before its base was committed: its change is read against that base."""
        if entry.held == "solo" and record.lease.base_version != run.version:
            await self._hub.commits.settled(run)
            if record.lease.base_version != run.version and record.state is LeaseState.SUBMITTED:
                raise CodecError("its base was never merged")

    def _unread(self, run: Run, entry: Entry, record: LeaseRecord, error: Exception) -> dict[str, Any]:
        """The hub can't read what the change was made from: no fault of the worker's; its units are leased again."""
        log.error("a report of %s can't be used: %s", record.member.worker_id, error)
        if record.at(LeaseState.SUBMITTED):
            self._hub.taking.withdraw(run, entry, record, Trigger.LOSE, "the version it was made from can't be read")
            self._hub.commits.close_rounds(run, entry)
            self._hub.giving.dispatch()
        return {"accepted": False, "reason": record.reason or LATE}

    def _rejected(self, run: Run, entry: Entry, record: LeaseRecord, error: CodecError) -> dict[str, Any]:
        reason = error.message
        if record.state is LeaseState.SUBMITTED:
            member = record.member
            if error.fields.get("kind") == "OutOfMemory":
                member.too_small(run.run_id)
            else:
                member.refuse(run.run_id)
            run.say("rejected", self._hub.clock.now(), f"A report of {member.worker_id} was refused: {reason}", worker=member.worker_id)
            self._hub.last_rejection[run.run_id] = error
            self._hub.taking.withdraw(run, entry, record, Trigger.REJECT, reason)
            self._hub.watch.check_workers(run, entry, self._hub.clock.monotonic())
            self._hub.commits.close_rounds(run, entry)
            self._hub.giving.dispatch()
        return {"accepted": False, "reason": reason}

    def _accepted(self, run: Run, entry: Entry, record: LeaseRecord, report: Report, change: Held | Parked, now: float) -> None:
        hub, member = self._hub, record.member
        took_s = record.took_s = now - (record.given_s if record.begun_s is None else record.begun_s)
        # a log is kept once, in the result: the change's bytes are not needed any more
        record.report = Report(report.lease_id, report.done, report.logs, b"", report.left, report.exit, report.losses, report.seconds)
        record.change = change
        record.go(Trigger.ACCEPT)
        hub.lending.returned(record)
        member.held.pop(record.lease.lease_id, None)
        member.seen_s = hub.clock.monotonic()
        known = record.pace.overhead_s is not None and report.done == len(record.lease.units)
        if not record.again:  # by then it only travels
            member.measured(run.run_id, report.done, report.seconds, took_s, record.pace.expected_s if known else 0.0)
        run.tally(member, hub.prices).ended(run.clock(now), min(report.seconds, took_s))
        hub.taking.begin_next(member, now)
        rnd = next(r for r in entry.rounds if record in r.records)
        if record.twin is not None:
            self._first_of_two(run, entry, record, record.twin)
        if report.exit and not record.spare:
            self._left_loop(run, entry, record)
        if rnd.gang is not None and record.state is LeaseState.ACCEPTED:
            rnd.gang.leave(record.lease.rank)
        hub.commits.close_rounds(run, entry)
        hub.giving.dispatch()

    def _first_of_two(self, run: Run, entry: Entry, record: LeaseRecord, twin: LeaseRecord) -> None:
        """Of two leases of the same units the first valid report counts; the other is told to stop, or paid if it is valid too."""
        if twin.state is LeaseState.LEASED:
            self._hub.taking.end(run, entry, twin, Trigger.DISCARD, "another worker was first", False)
        elif twin.state in (LeaseState.ACCEPTED, LeaseState.MERGED):
            record.spare = True

    def _left_loop(self, run: Run, entry: Entry, record: LeaseRecord) -> None:
        """The body left the loop: nothing beyond that iteration is wanted. A gang that went further runs again up to there."""
        at = record.last_index
        rnd = next(r for r in entry.rounds if record in r.records)
        if rnd.gang is not None:
            if any(u.index > at for r in rnd.records for u in r.lease.units):
                self._hub.taking.withdraw(run, entry, record, Trigger.LOSE, f"the loop was left at iteration {at}")
                entry.gang_limit = at
            else:
                entry.cut_off(at)
            return
        entry.cut_off(at)
        for other in [r for each in entry.rounds for r in each.records]:
            if other.state is LeaseState.LEASED and other.lease.first > at:
                self._hub.taking.end(run, entry, other, Trigger.DISCARD, f"the loop was left at iteration {at}", entry.spec.contiguous)
