"""Takes leases back: what is lost, late, refused or not wanted any more. Synchronous, as giving.py is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from depin_nb.hub.leases.entry import OUT, Entry, LeaseRecord, Round
from depin_nb.hub.leases.members import Member
from depin_nb.hub.records.journal import LeaseRow
from depin_nb.hub.records.rows import spans_of
from depin_nb.hub.run import Run
from depin_nb.training.lifecycle import LeaseState, Trigger
from depin_nb.training.strategy import MAX_STALENESS

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator


class Taking:
    """The part of the coordinator by which a lease comes to nothing, and a late one back into its device's hands."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    def withdraw(self, run: Run, entry: Entry, record: LeaseRecord, trigger: Trigger, reason: str, *, wanted: bool = True) -> None:
        """A lease comes to nothing: its units are open again (unless no longer `wanted`), nothing is owed for it.

        A gang goes with any of its leases, a solo entry with its worker, and what the worker has in hand behind this lease with it.
        """
        rnd = next(r for r in entry.rounds if record in r.records)
        group = rnd.records if rnd.gang is not None else [record]
        if rnd.gang is not None:
            rnd.gang.abort(reason)
        for later in reversed(self._built_on(entry, record)):
            self.end(run, entry, later, Trigger.LOSE, reason, wanted)
        for each in group:
            if each.state not in (*OUT, LeaseState.ACCEPTED):
                continue
            own = trigger if each is record or trigger is Trigger.DISCARD else Trigger.LOSE
            self.end(run, entry, each, own, reason, wanted)
            rnd.lost.update(u.index for u in each.lease.units if wanted and each.needed)
        if rnd.kind == "solo" and wanted and not entry.halt:
            self.lose_solo(run, entry, "is silent" if record.member.silent(self._hub.clock.monotonic()) else "is gone")

    @staticmethod
    def _built_on(entry: Entry, record: LeaseRecord) -> list[LeaseRecord]:
        """Leases that its member has from after it: made from what it left behind, or waiting behind it."""
        mine = [r for rnd in entry.rounds for r in rnd.records if r.member is record.member and r.state in OUT]
        return [r for r in mine if r.number > record.number]

    def end(self, run: Run, entry: Entry, record: LeaseRecord, trigger: Trigger, reason: str, wanted: bool) -> None:
        """One lease comes to nothing, whatever becomes of its round."""
        now = self._hub.clock.monotonic()
        if trigger is Trigger.DISCARD and record.state in (LeaseState.SUBMITTED, LeaseState.ACCEPTED):
            record.go(Trigger.LOSE)  # without a valid report that counts, nothing is owed
        record.go(trigger)
        self._hub.lending.returned(record)
        record.reason, record.report, record.change = reason, None, None
        run.budget = run.budget.release(record.reserved)
        lease, member = record.lease, record.member
        if member.held.pop(lease.lease_id, None) is not None and record.begun_s is not None:
            run.tally(member, self._hub.prices).ended(run.clock(now), math.inf, lost=wanted)  # work that isn't needed isn't a loss
        if wanted and record.needed:
            entry.put_back(lease.units)
        if record.twin is not None:
            record.twin.twin = None
        self.begin_next(member, now)
        run.backlog.append(
            LeaseRow(
                lease.lease_id, entry.entry_id, member.worker_id, lease.base_version, None, record.state.value,
                spans_of([u.index for u in lease.units]), 0,
                self._hub.clock.now(), reason=f"{trigger.value}: {reason}"[:500], gang=lease.gang,
            )
        )  # fmt: skip

    def lose_solo(self, run: Run, entry: Entry, why: str = "is gone") -> None:
        entry.halt = "solo-lost"
        run.solo_worker = ""
        run.say("solo-lost", self._hub.clock.now(), f"{entry.solo_worker} {why}; the loop goes on from the last merge on another worker.")

    def member_gone(self, member: Member) -> None:
        """A worker's connection is closed: what it held is open again at once."""
        now = self._hub.clock.now()
        for run in self._hub.runs.values():
            entry, tally = run.entry, run.tallies.get(member.worker_id)
            records = [r for rnd in entry.rounds for r in rnd.records if r.member is member and r.at(LeaseState.LEASED)] if entry else []
            if tally is not None:
                tally.gone = "lost" if records else "left"
            if entry is None:
                continue
            if records:
                count = sum(len(r.lease.units) for r in records)
                what = f"{member.worker_id} is gone: its {count} iterations are leased again."
                if count == 1:
                    what = f"{member.worker_id} is gone: its iteration is leased again."
                run.say("worker-lost", now, what, worker=member.worker_id)
                for record in records:
                    if record.at(LeaseState.LEASED):
                        self.withdraw(run, entry, record, Trigger.LOSE, "its worker is gone")
                assert tally is not None
                tally.gone = "lost"
            elif entry.held == "solo" and entry.solo_worker == member.worker_id and not entry.halt:
                self.lose_solo(run, entry)
            self._hub.commits.close_rounds(run, entry)
            entry.changed.notify()
        if member.parked is not None and not member.parked.done():
            member.parked.set_result({"leave": True})
            member.parked = None

    def welcome(self, member: Member, lease_id: str) -> str:
        """A device is back with a lease that was taken away for being late: it has it again, under a new id, if nobody else has its units
        by now and its base isn't too old. "" where not."""
        for run in self._hub.runs.values():
            entry = run.entry
            old = entry.expired.get(lease_id) if entry is not None else None
            if entry is None or old is None or old.member is not member or entry.held != "local" or not run.leasing:
                continue
            indices = [u.index for u in old.lease.units]
            rnd = entry.round or Round("local", run.version + sum(r.merging and not r.committed for r in entry.rounds))
            kept = self._hub.states.size(run.run_id, old.lease.base_version) > 0
            fits = kept and rnd.base_version - old.lease.base_version <= (0 if entry.spec.contiguous else MAX_STALENESS)
            if not fits or not entry.queued(indices) or not self._hub.purses.allows(run, old.reserved):
                return ""
            del entry.expired[lease_id]
            entry.take(indices)
            rnd.lost.difference_update(indices)
            run.budget = self._hub.purses.reserve(run, old.reserved)
            lease = replace(old.lease, lease_id=entry.next_lease_id())
            record = replace(old, lease=lease, number=entry.leases, state=LeaseState.OPEN, reason="", twin=None)
            record.go(Trigger.LEASE)
            rnd.records.append(record)
            member.held[lease.lease_id] = run.run_id
            if rnd not in entry.rounds:
                entry.rounds.append(rnd)
            return lease.lease_id
        return ""

    def begin_next(self, member: Member, now: float) -> None:
        """The first lease that it has in hand is the one at work."""
        for run, record in self.in_hand(member):
            if record.at(LeaseState.LEASED):
                if record.begun_s is None:
                    record.begun_s = now
                    run.tally(member, self._hub.prices).began(run.clock(now))
                return

    def in_hand(self, member: Member) -> Iterator[tuple[Run, LeaseRecord]]:
        """The leases that it has, in the order of lending."""
        for lease_id, run_id in member.held.items():
            run = self._hub.runs.get(run_id)
            record = run.entry.record(lease_id) if run is not None and run.entry is not None else None
            if run is not None and record is not None:
                yield run, record
