"""Closes rounds: merge, the new version's file, then one journal transaction with the merge, its leases, receipts and money."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from depin_nb.core.amount import Amount
from depin_nb.core.lease import StrategyConfig, Unit, drawn_digest
from depin_nb.core.state import State
from depin_nb.hub.aggregation import Parked
from depin_nb.hub.answers import error_of
from depin_nb.hub.leases.entry import OUT, Entry, LeaseRecord, Result, Round
from depin_nb.hub.records import resumable
from depin_nb.hub.records.journal import LeaseRow, MergeRow
from depin_nb.hub.records.replays import Written
from depin_nb.hub.records.rows import spans_of
from depin_nb.hub.run import Run
from depin_nb.hub.trouble import explained
from depin_nb.hub.versions.mapped import Relief
from depin_nb.hub.versions.spool import Held
from depin_nb.ledger.receipt import Receipt
from depin_nb.metering.bytime import flops_of_time
from depin_nb.metering.meter import lease_cost
from depin_nb.training.compress import Change, read_change
from depin_nb.training.lifecycle import Trigger, advance
from depin_nb.training.merge import Contribution, OuterState, merging, rebased
from depin_nb.training.strategy import MAX_STALENESS

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

log = logging.getLogger(__name__)
KEPT_VERSIONS = 3


@dataclass(frozen=True)
class Merged:
    """What the executor made of a round: the new state, as it lies in its file."""

    state: State
    outer: OuterState
    logs: Written | None = None  # None when the run can't be resumed any more


def cost_of(hub: Coordinator, entry: Entry, record: LeaseRecord) -> tuple[int, Amount]:
    """(FLOPs, DPN) of an accepted lease: the probe's figure for each iteration done (or a cell's time), never what the worker says."""
    assert record.report is not None
    flops = entry.spec.flops_per_iteration * record.report.done
    if limit_s := entry.spec.limit_s:
        flops = flops_of_time(hub.prices, record.member.profile, min(record.took_s, limit_s))
    return flops, lease_cost(hub.prices, record.member.profile, flops)


def results_of(records: Sequence[LeaseRecord], gang: bool, version: int) -> list[Result]:
    """Accepted leases as results; a gang's ranks, interleaved into loop order, make one."""
    if not gang:
        return [
            Result(r.lease.first, r.report.logs, r.report.left, r.report.exit, version)
            for r in sorted(records, key=lambda r: r.lease.first)
            if r.report is not None
        ]
    last = max(records, key=lambda r: r.last_index)
    assert last.report is not None
    logs = {u.index: text for r in records if r.report for u, text in zip(r.lease.units, r.report.logs, strict=False)}
    order = sorted(logs)
    return [Result(order[0], tuple(logs[i] for i in order), last.report.left, last.report.exit, version)]


class Commits:
    """The part of the coordinator that closes rounds. Merges of a run happen one after the other."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    def close_rounds(self, run: Run, entry: Entry) -> None:
        """Rounds that are ready: those with accepted leases merge, the others just reopen."""
        for rnd in list(entry.rounds):
            if rnd.merging:
                continue
            if not self._hub.closing.ready(run, entry, rnd):
                if rnd.kind == "solo":
                    return  # later ones build on it
                continue
            if not rnd.accepted:
                entry.rounds.remove(rnd)
                continue
            rnd.merging = True
            before, run.commit_tail = run.commit_tail, None
            run.commit_tail = asyncio.get_running_loop().create_task(self._close(run, entry, rnd, before))

    async def settled(self, run: Run) -> None:
        """Returns when no merge is under way."""
        while run.commit_tail is not None and not run.commit_tail.done():
            await asyncio.shield(run.commit_tail)

    async def _close(self, run: Run, entry: Entry, rnd: Round, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        try:
            if entry.halt == "failed":  # an earlier merge, on which this one builds
                self._forget(run, rnd)
            elif self._hub.aggregation.awaits(run, entry, rnd):  # the loop was left meanwhile: other leases than were summed up
                rnd.merging = False
                return
            else:
                await self._commit(run, entry, rnd)
        except Exception as error:
            log.exception("a merge of %s failed", run.run_id)
            error = await self._hub.in_executor(explained, error, self._hub.home, run.run_id)
            entry.halt, entry.error = "failed", error_of(error)
            self._forget(run, rnd)
            run.say("failed", self._hub.clock.now(), f"A merge failed: {error}")
        finally:
            if rnd.merging:
                entry.rounds.remove(rnd)
            entry.changed.notify()
            self._hub.changed.notify()
            self._hub.giving.dispatch()

    @staticmethod
    def _forget(run: Run, rnd: Round) -> None:
        for record in rnd.accepted:
            run.budget = run.budget.release(record.reserved)
            record.go(Trigger.LOSE)

    async def _commit(self, run: Run, entry: Entry, rnd: Round) -> None:
        hub = self._hub
        loop = asyncio.get_running_loop()
        gap = entry.gap(rnd)
        behind = [r for r in rnd.accepted if gap is not None and r.lease.first > gap and not r.spare]
        beyond = [r for r in rnd.accepted if r in behind or r.spare or (entry.exit_at is not None and r.lease.first > entry.exit_at)]
        kept = [r for r in rnd.accepted if r not in beyond]
        merged: Merged | None = None
        version = run.version
        if kept:
            version += 1
            base, limit, relief = run.weights, hub.change_limit(run), Relief()
            assert base is not None
            contributions = [self._contribution(run, r, r.change, base, limit, relief) for r in kept if isinstance(r.change, Held)]
            contributions += [hub.aggregation.contribution(at, each, base, limit, relief) for at, each in rnd.sums.items()]
            outer, config = run.outer or OuterState(), entry.spec.strategy
            assert rnd.base_version == run.version, "a round merges into the version that its newest leases began from"
            merged = await hub.in_executor(self._merge, run.run_id, version, base, contributions, config, outer, relief)
            if run.keeps:
                results = results_of(kept, rnd.kind == "gang", version)
                units = [u for r in kept for u in r.lease.units]
                merged = replace(merged, logs=await loop.run_in_executor(hub.executor, self._keep, run.run_id, version, results, units))
        await self._write(run, entry, rnd, kept, beyond, version, merged.logs if merged is not None else None)
        if merged is None:  # what was to build on it builds on what there is
            for later in (each for each in entry.rounds if each.kind == "local"):
                later.base_version = min(later.base_version, run.version)
        if behind:
            entry.go_back((u for r in behind for u in r.lease.units), [r.last_index for r in kept if r.exit])
        if merged is not None:
            run.weights, run.outer, run.version = merged.state, merged.outer, version
            rnd.committed = True
            run.merges += 1
            entry.gang_limit = None
            done = [u.index for r in kept for u in r.lease.units[: r.report.done if r.report else 0]]
            run.iterations += len(done)
            entry.add_merged(done, results_of(kept, rnd.kind == "gang", version))
            keep = {version - i for i in range(KEPT_VERSIONS)} | {r.base_version for r in entry.rounds} | {entry.base_version}
            keep |= {r.lease.base_version for each in entry.rounds for r in each.records}
            keep |= {r.lease.base_version for r in entry.expired.values() if version - r.lease.base_version <= MAX_STALENESS}
            await loop.run_in_executor(hub.executor, hub.states.prune, run.run_id, keep | run.ends)
            await hub.resuming.keep(run, merged.logs.nbytes if merged.logs is not None else 0)
            hub.checkpoints.merged(run)

    def _contribution(self, run: Run, record: LeaseRecord, held: Held, base: State, max_bytes: int, relief: Relief) -> Contribution:
        age = run.version - record.lease.base_version

        def read() -> Change:
            """What was checked when it came; a late one as a change of the newest version."""
            view, mapped = held.open()
            relief.add(mapped)
            if not age:
                return read_change(view, base, max_bytes=max_bytes)
            then = self._hub.states.open(run.run_id, record.lease.base_version)
            relief.add(then.mapped)
            return rebased(read_change(view, then, max_bytes=max_bytes), then, base)

        return Contribution(record.member.worker_id, record.samples, record.last_index, read, age)

    def _merge(
        self,
        run_id: str,
        version: int,
        base: State,
        contributions: list[Contribution],
        config: StrategyConfig,
        outer: OuterState,
        relief: Relief,
    ) -> Merged:
        """Reads one change at a time, and writes the new version while it is computed: beside the sums, little is in memory at once."""
        states = self._hub.states
        for part in (base, outer):
            relief.add(getattr(part, "mapped", None))
        following = merging(base, contributions, config, outer, relief)

        def parts() -> Iterator[bytes | memoryview]:
            for part in following.to_parts():
                yield part
                relief(len(part))

        states.write(run_id, version, parts())
        if not following.outer.momentum:
            return Merged(states.open(run_id, version), OuterState())
        states.write_outer(run_id, version, following.outer.momentum)
        relief.now()
        return Merged(states.open(run_id, version), states.read_outer(run_id, version) or following.outer)

    def _keep(self, run_id: str, version: int, results: Sequence[Result], units: Sequence[Unit]) -> Written:
        """The merge's logs on disk, for a resume: whole before the transaction names them."""
        return self._hub.replays.write(run_id, version, results, {u.index: drawn_digest(u.data) for u in units})

    async def _write(
        self,
        run: Run,
        entry: Entry,
        rnd: Round,
        kept: list[LeaseRecord],
        beyond: list[LeaseRecord],
        version: int,
        logs: Written | None = None,
    ) -> None:
        """The transaction; memory follows only once it is on disk."""
        hub, now = self._hub, self._hub.clock.now()
        rows: list[LeaseRow] = []
        receipts: list[Receipt] = []
        points: list[tuple[float, float]] = []
        budget = run.budget
        for record in [*kept, *beyond]:
            report, lease, member = record.report, record.lease, record.member
            assert report is not None
            flops, cost = cost_of(hub, entry, record)
            mine = version if record in kept else None
            state = advance(record.state, Trigger.MERGE if mine is not None else Trigger.DISCARD)
            samples = record.samples
            budget = budget.commit(record.reserved, cost)
            rows.append(
                LeaseRow(
                    lease.lease_id, entry.entry_id, member.worker_id, lease.base_version, mine, state.value,
                    spans_of([u.index for u in lease.units]), report.done, now, gang=lease.gang, flops=flops, units_dpn=cost.units,
                    cost_units=cost.units, seconds=report.seconds,
                )
            )  # fmt: skip
            receipts.append(
                Receipt(
                    run.run_id, lease.lease_id, member.worker_id, member.wallet, entry.entry_id, lease.first, report.done, samples, flops,
                    cost.units, -1 if mine is None else mine, int(now * 1000),
                )
            )  # fmt: skip
            if mine is not None:
                points += [(float(run.done_before + i - entry.spec.first), v) for i, v in report.losses]
        merge_row = None
        if kept:
            done = sum(r.report.done for r in kept if r.report)
            samples = sum(r.samples for r in kept)
            name = hub.states.name(run.run_id, version)
            merge_row = MergeRow(version, entry.entry_id, rnd.base_version, done, samples, tuple(sorted(points)), name, now)
            late = sum(r.lease.base_version != rnd.base_version for r in kept)
            summed = sum(isinstance(r.change, Parked) for r in kept)
            run.say("merged", now, version=version, iterations=done, leases=len(kept), late=late, summed=summed)
        backlog, events = run.drain()
        cap = None if run.cap is None else run.cap.to_dict()

        def write() -> None:
            with hub.journal.transaction() as connection:
                if merge_row is not None:
                    hub.journal.add_merge(run.run_id, merge_row)
                if logs is not None:
                    resumable.add_replay(connection, run.run_id, version, entry.entry_id, logs.spans, logs.file, logs.nbytes)
                hub.journal.add_leases(run.run_id, [*backlog, *rows])
                hub.journal.add_events(events)
                hub.journal.set_money(run.run_id, spent_units=budget.spent.units, reserved_units=budget.reserved.units, budget=cap)
                for receipt in receipts:
                    hub.ledger.record(connection, receipt)

        await asyncio.get_running_loop().run_in_executor(hub.books, write)
        self._charge(run, entry, kept, beyond, points)

    def _charge(
        self, run: Run, entry: Entry, kept: list[LeaseRecord], beyond: list[LeaseRecord], points: list[tuple[float, float]]
    ) -> None:
        hub = self._hub
        at_s = run.clock(hub.clock.monotonic())
        for record in [*kept, *beyond]:
            assert record.report is not None
            _, cost = cost_of(hub, entry, record)
            run.budget = run.budget.commit(record.reserved, cost)
            record.go(Trigger.MERGE if record in kept else Trigger.DISCARD)
            samples, done = record.samples, record.report.done if record in kept else 0
            run.meter.charge(record.member.worker_id, cost, done, at_s)
            tally = run.tally(record.member, hub.prices)
            tally.accepted(at_s, run.clock(record.given_s), record.report.done, samples, cost.units)
            if record.member.address not in hub.members:
                tally.gone = tally.gone or "left"
            run.samples += samples if record in kept else 0
        for x, y in sorted(points):
            run.curve.add(x, y)
        if run.budget.warning and not run.warned:
            run.warned = True
            run.say("budget-warning", hub.clock.now(), "80 % of the budget are spent.")

    async def abandon(self, run: Run, entry: Entry, reason: str) -> None:
        """Ends an entry at once: leases that are out come to nothing, accepted ones that no merge holds yet are paid and not merged."""
        entry.halt = entry.halt or "closed"
        for rnd in [r for r in entry.rounds if not r.merging]:
            if rnd.gang is not None:
                rnd.gang.abort(reason)
            for record in rnd.records:
                if record.state in OUT:
                    self._hub.taking.end(run, entry, record, Trigger.DISCARD, reason, False)
            entry.rounds.remove(rnd)
            paid = rnd.accepted
            if paid:
                before, run.commit_tail = run.commit_tail, None
                run.commit_tail = asyncio.get_running_loop().create_task(self._pay_only(run, entry, rnd, paid, before))
        entry.changed.notify()
        await self.settled(run)

    async def _pay_only(self, run: Run, entry: Entry, rnd: Round, paid: list[LeaseRecord], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        try:
            await self._write(run, entry, rnd, [], paid, run.version)
        except Exception:
            log.exception("receipts of %s could not be written", run.run_id)
            self._forget(run, rnd)
