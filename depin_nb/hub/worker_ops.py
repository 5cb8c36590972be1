"""The operations of docs/protocol.md that workers call. All that comes in is hostile until it is checked here."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from depin_nb.core.errors import CodecError, HubError, UsageError
from depin_nb.core.lease import Report
from depin_nb.core.parts import Buffer
from depin_nb.hub.aggregation import Parked
from depin_nb.hub.leases.entry import OUT, Entry, LeaseRecord
from depin_nb.hub.leases.members import Member, member_of
from depin_nb.hub.run import Run
from depin_nb.hub.versions.references import Reference
from depin_nb.hub.versions.spool import Held
from depin_nb.ledger.wallet import is_address
from depin_nb.training.compress import read_change
from depin_nb.training.downlink import STEP_BITS
from depin_nb.training.entering import holding_inner, inner_to_bytes
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.core.state import State
    from depin_nb.hub.coordinator import Coordinator

log = logging.getLogger(__name__)
MAX_LINK_BYTES = 256 << 10
MAX_BROUGHT = 64  # leases that a worker may bring back
MAX_LOG_BYTES = 64 << 20
MAX_WAIT_S = 60.0
EXITS = ("", "break", "return", "error")
UNABLE = (
    "DatasetDiffers",
    "MissingPackage",
    "WithheldError",
    "ShipError",
    "OutOfMemory",
)  # why a program can't be run at all, in a worker's own words
LATE = "this lease is no longer yours"
NOT_YET = "its run waits for its notebook"


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


class WorkerOps:
    """One method for each operation, by the protocol's names and arguments. Errors are raised; the plugin makes them data."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self._life = secrets.token_hex(8)

    def _member(self, worker: str) -> Member:
        member = self._hub.members.get(worker)
        if member is None:
            raise HubError("this worker hasn't joined", hint="It must call depin_join first.", hub=self._life)
        member.seen_s = self._hub.clock.monotonic()
        return member

    def _run(self, run: str) -> Run:
        found = self._hub.runs.get(run)
        if found is None:
            raise HubError(f"{run!r} is not an active run")
        return found

    def _entry(self, run: Run, entry: int) -> Entry:
        if run.entry is None or run.entry.entry_id != entry:
            raise HubError(f"entry {entry} of {run.run_id} is closed")
        return run.entry

    def join(self, worker: str, profile: str, wallet: str, facts: dict[str, Any] | None = None, held: Sequence[str] = ()) -> dict[str, Any]:
        """A worker is here. Joining again replaces what it said before. Raises ConfigError for a profile without price.

        `held`: leases that it has from a hub that is gone. `keep` in the answer are those that it may go on with and hand in; those of
        them in `later` once their notebook is back.
        """
        hub = self._hub
        hub.prices.price(profile)
        if not isinstance(worker, str) or not isinstance(wallet, str) or not is_address(wallet):
            raise UsageError("a worker joins with its address and its wallet's public key")
        if (before := hub.members.pop(worker, None)) is not None:
            hub.taking.member_gone(before)
            hub.aggregation.lost(worker)
        hub.members[worker] = member_of(
            worker, profile, wallet, facts if isinstance(facts, dict) else {}, secrets.token_hex(8), hub.clock.monotonic()
        )
        for run in hub.runs.values():
            run.without_workers_s = None
        member = hub.members[worker]
        keep = hub.returning.joined(member, [i for i in held[:MAX_BROUGHT] if isinstance(i, str)])
        hub.changed.notify()
        return {"session": member.session, "hub": self._life, "keep": keep, "later": [i for i in keep if i not in member.held]}

    def link(self, worker: str, data: bytes = b"", want: int = 0) -> dict[str, Any]:
        """Takes `data` and gives back `want` bytes: what a worker measures its link by, before it joins. Nothing is kept or counted."""
        if type(want) is not int or not 0 <= want <= MAX_LINK_BYTES or len(data) > MAX_LINK_BYTES:
            raise UsageError(f"a link is measured with at most {MAX_LINK_BYTES >> 10} KiB")
        return {"data": os.urandom(want)}  # what is on the way can't be compressed

    async def lease(self, worker: str, timeout_s: float = 30.0, held: Sequence[str] = (), link: Any = None) -> dict[str, Any]:
        """`{"lease"}` as soon as there is one, `{"wait": True}` after `timeout_s`, `{"leave": True}` for a worker that isn't wanted.

        `held`: leases that the worker has in hand; any other that it was given is lost. `link`: its link, where it measured it anew.
        """
        hub = self._hub
        member = hub.members.get(worker)
        if member is None:
            return {"leave": True, "hub": self._life}
        member.seen_s = hub.clock.monotonic()
        member.linked(link)
        self._drop_others(member, held)
        if member.parked is not None and not member.parked.done():
            member.parked.set_result({"wait": True})  # an older call of the same worker: only one can get the lease
        parked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        member.parked = parked
        hub.giving.dispatch()
        try:
            await asyncio.wait({parked}, timeout=min(max(0.0, float(timeout_s)), MAX_WAIT_S))
        except asyncio.CancelledError:
            if parked.done() and (given := parked.result().get("lease")) is not None:
                self._drop_others(member, [i for i in member.held if i != given["lease_id"]])
            raise
        finally:
            member.seen_s = hub.clock.monotonic()
            if member.parked is parked:
                member.parked = None
        return parked.result() if parked.done() else {"wait": True}

    def _drop_others(self, member: Member, held: Sequence[str]) -> None:
        """A worker doesn't work on what it doesn't name: the answer that gave it was lost, or it gave up."""
        for lease_id, run_id in list(member.held.items()):
            if lease_id in held or lease_id not in member.held:
                continue
            run = self._hub.runs.get(run_id)
            entry = run.entry if run is not None else None
            record = entry.record(lease_id) if entry is not None else None
            if run is None or entry is None or record is None:
                del member.held[lease_id]
            elif record.state is LeaseState.LEASED:
                self._hub.taking.withdraw(run, entry, record, Trigger.LOSE, "its worker doesn't have it any more")
                self._hub.commits.close_rounds(run, entry)

    async def entry(self, worker: str, run: str, entry: int, own: bool = False) -> dict[str, Any]:
        """The spec, and `own_inner` where workers go on with their optimizer state of the entry before.

        One that has none of its `own` gets `inner`, what the newest version has, where that isn't in what `depin_version` gives.
        """
        self._member(worker)
        active = self._run(run)
        spec = self._entry(active, entry).spec
        answer: dict[str, Any] = {"spec": spec.to_dict()}
        strategy = spec.strategy
        if not active.own_inner or strategy.solo or strategy.name == "sync" or active.weights is None:
            return answer
        if own:
            return {**answer, "own_inner": True}
        if strategy.down_bits in STEP_BITS and active.reference is not None:
            answer["inner"] = await self._hub.in_executor(inner_to_bytes, active.weights)
            active.bytes_down += len(answer["inner"])
        return answer

    async def blob(self, worker: str, run: str, digest: str) -> dict[str, Any]:
        self._member(worker)
        active = self._run(run)
        spec = active.entry.spec if active.entry is not None else None
        if spec is None or (digest != spec.program and digest not in spec.blobs):
            raise HubError("that blob isn't part of this run")
        return {"data": self._counted(active, await self._hub.transfers.of_blob(active, digest))}

    async def version(self, worker: str, run: str, version: int, have: dict[str, Any] | None = None) -> dict[str, Any]:
        """`{"version", "state"}`, the version whole, with `digest` where later ones may come as steps; or `{"version", "steps", "digest"}`
        from what the worker says to `have`: `{"version", "digest"}`. What is larger than a message is announced (`part`)."""
        self._member(worker)
        active = self._run(run)
        if type(version) is not int or version < 0:
            raise HubError("that isn't a version")
        reference = await self._reference(active, version)
        if reference is not None and (way := reference.way(have, version)) is not None:
            steps = [self._counted(active, await self._hub.transfers.of_bytes(active, data)) for data in way[0]]
            return {"version": version, "steps": steps, "digest": way[1]}
        if reference is not None and reference.state is not None and reference.version == version:
            digest = reference.digest
            data = self._counted(active, await self._hub.transfers.of_reference(active, reference))
            return {"version": version, "state": data, "digest": digest}
        return {"version": version, "state": self._counted(active, await self._hub.transfers.of_version(active, version))}

    @staticmethod
    def _counted(run: Run, data: bytes | dict[str, Any]) -> bytes | dict[str, Any]:
        run.bytes_down += len(data) if isinstance(data, bytes) else 0  # an announced one counts by its parts
        return data

    async def part(self, worker: str, run: str, digest: str, offset: int, want: int) -> dict[str, Any]:
        """`{"data"}`: a part of what was announced, from `offset` on."""
        return await self._hub.transfers.part(self._member(worker), self._run(run), digest, offset, want)

    async def put(self, worker: str, lease: str, about: dict[str, Any], offset: int, data: Buffer) -> dict[str, Any]:
        """Takes a part of a change that is too large for its report. `{"have"}`: bytes that are here; or `{"refused": reason}`."""
        return await self._hub.transfers.put(self._member(worker), lease, about, offset, data)

    async def _reference(self, run: Run, version: int) -> Reference | None:
        """What the run's workers hold, brought to `version` where that is the newest; None where versions travel whole."""
        bits = run.entry.spec.strategy.down_bits if run.entry is not None else 32
        if bits not in STEP_BITS:
            return None
        if run.reference is None or run.reference.bits != bits:
            run.reference = Reference(bits, self._hub.spool)
        reference = run.reference
        if version == run.version and run.weights is not None:
            newest = holding_inner(run.weights, reference.state) if run.own_inner else run.weights
            await reference.advance(version, newest, self._hub.in_executor)
        return reference

    async def reduce(self, worker: str, run: str, gang: str, step: int, rank: int, weight: float, data: Buffer) -> dict[str, Any]:
        """`{"data": codec gradients}`, the same bytes for all ranks, or `{"abort": reason}`."""
        member = self._member(worker)
        active = self._run(run)
        entry = active.entry
        rnd = entry.round if entry is not None else None
        record = next((r for r in rnd.records if r.member is member), None) if rnd is not None else None
        if entry is None or rnd is None or rnd.gang is None or record is None or record.state not in OUT:
            return {"abort": LATE}
        lease = record.lease
        if lease.gang != gang or lease.rank != rank or type(step) is not int or not isinstance(data, Buffer):
            return {"abort": "not this worker's place in the gang"}
        active.bytes_up += len(data)
        mean = await rnd.gang.reduce(rank, step, weight, data)
        member.seen_s = self._hub.clock.monotonic()
        if mean is None:
            if record.state in OUT:
                self._hub.taking.withdraw(active, entry, record, Trigger.LOSE, rnd.gang.aborted)
                active.say("gang", self._hub.clock.now(), f"A gang was given up and forms anew: {rnd.gang.aborted}")
                self._hub.commits.close_rounds(active, entry)
                self._hub.giving.dispatch()
            return {"abort": rnd.gang.aborted}
        active.bytes_down += len(mean)
        return {"data": mean}

    def alive(self, worker: str, lease: str, held: Sequence[str] = ()) -> dict[str, Any]:
        """`go`: whether the lease at work is wanted; of `held`, `drop` aren't, `later` aren't to be handed in yet, and `again` are to be
        handed in again, since an aggregator has lost their changes."""
        member = self._hub.members.get(worker)
        if member is None:
            return {"go": False, "drop": list(held), "hub": self._life}
        member.seen_s, member.chatty = self._hub.clock.monotonic(), True
        others = [i for i in held if i not in member.held]
        later = [i for i in others if self._hub.returning.expected(member, i)]
        drop = [i for i in others if i not in later and not self._hub.aggregation.keeps(i)]
        again = self._hub.aggregation.wanted_again(member, held)
        return {"go": lease in member.held or lease in later, "drop": drop, "later": later, **({"again": again} if again else {})}

    def placed(self, worker: str, lease: str) -> dict[str, Any]:
        """For an aggregator: of which run and version a lease is, or `{"refused"}`."""
        self._member(worker)
        return self._hub.aggregation.placed(worker, lease)

    def say(self, worker: str, run: str, lease: str, data: bytes) -> dict[str, Any]:
        """What a whole cell said: kept in order for the kernel, as far as there is room. Only from the worker that holds the lease."""
        member = self._member(worker)
        active = self._run(run)
        entry = active.entry
        if entry is None or not entry.spec.limit_s or member.held.get(lease) != run or not isinstance(data, bytes):
            raise HubError("nobody listens to this lease")
        active.bytes_up += len(data)
        taken = entry.output.add(data)
        entry.changed.notify()
        return {"taken": taken}

    async def report(self, worker: str, report: dict[str, Any]) -> dict[str, Any]:
        """Takes a lease's report if its worker still holds the lease; what it says is checked before it counts."""
        hub = self._hub
        member = self._member(worker)
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
        hub.giving.returned(record)
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
