"""Makes leases and hands them out, within what budgets allow. Synchronous, as giving.py is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depin_nb.core.amount import Amount
from depin_nb.core.lease import Lease, Unit
from depin_nb.hub.answers import error_of
from depin_nb.hub.leases.entry import Entry, LeaseRecord, Round
from depin_nb.hub.leases.members import Member
from depin_nb.hub.leases.rounds import (
    DEADLINE_FACTOR,
    Pace,
)
from depin_nb.hub.leases.shares import Shares
from depin_nb.hub.run import Run
from depin_nb.metering.bytime import flops_of_time
from depin_nb.metering.meter import lease_cost
from depin_nb.training import strategy
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator


class Lending:
    """`shares`: what each run's part of the devices' time has been charged with."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self.shares = Shares()

    def returned(self, record: LeaseRecord) -> None:
        """A lease isn't out any more: its run's share is charged with what it took."""
        if record.charge is not None:
            began_s = self._hub.clock.monotonic() if record.begun_s is None else record.begun_s
            self.shares.ended(record.charge, self._hub.clock.monotonic() - began_s)
            record.charge = None

    def pace(self, run: Run, entry: Entry, member: Member, units: int) -> Pace:
        """What so many units would take on that member."""
        rate = member.rate(run.run_id, entry.spec.seconds_per_iteration)
        ratios = tuple(member.ratios.get(run.run_id, ()))
        return Pace(units, rate, member.overheads.get(run.run_id), self._hub.transfer_bytes(run, entry), ratios)

    def worst(self, entry: Entry, member: Member, units: int) -> Amount:
        """What so many units cost at most."""
        flops = entry.spec.flops_per_iteration * units
        if entry.spec.limit_s:
            flops = flops_of_time(self._hub.prices, member.profile, entry.spec.limit_s)
        return lease_cost(self._hub.prices, member.profile, flops)

    def contiguous(self, run: Run, entry: Entry, rnd: Round, member: Member, count: int, among: set[int] | None = None) -> bool:
        """Lends up to `count` units, fewer where only fewer fit the budget. False, and the entry halts, when not even one does."""
        indices = entry.peek(count, contiguous=True, among=among)
        while indices and not self._hub.purses.allows(run, self.worst(entry, member, len(indices))):
            indices = indices[: len(indices) // 2]
            if not indices:
                self.out_of_budget(run, entry)
                return False
        if not indices:
            return False
        self.lend(run, entry, rnd, member, entry.take(indices))
        return True

    def lend(
        self,
        run: Run,
        entry: Entry,
        rnd: Round,
        member: Member,
        units: tuple[Unit, ...],
        gang: str = "",
        part: strategy.GangPart | None = None,
        group_samples: tuple[int, ...] = (),
        size: int = 1,
    ) -> LeaseRecord:
        now = self._hub.clock.monotonic()
        lease = Lease(
            lease_id=entry.next_lease_id(),
            run_id=run.run_id,
            entry_id=entry.entry_id,
            base_version=rnd.base_version,
            units=units,
            final=entry.is_final(),
            gang=gang,
            rank=part.rank if part else 0,
            size=size,
            groups=part.groups if part else (),
            group_samples=group_samples,
            group_size=part.group_size if part else (),
            base_iteration=entry.spec.first + len(entry.merged),
            aggregator=self._hub.aggregation.aggregator_of(run, entry, rnd, member),
        )
        cost = self.worst(entry, member, len(units))
        run.budget = self._hub.purses.reserve(run, cost)
        pace = self.pace(run, entry, member, len(units))
        # who loses a solo lease loses its entry
        allowed_s = pace.deadline_s() if rnd.kind != "solo" else max(pace.deadline_s(), DEADLINE_FACTOR * pace.expected_s)
        record = LeaseRecord(lease, member, entry.leases, cost, now, pace, entry.spec.limit_s + allowed_s)
        record.go(Trigger.LEASE)
        rnd.records.append(record)
        run.bytes_down += sum(len(u.data) for u in units)
        tally = run.tally(member, self._hub.prices)
        if not any(r.at(LeaseState.LEASED) for _, r in self._hub.taking.in_hand(member)):
            record.begun_s = now
            tally.began(run.clock(now))
        member.held[lease.lease_id] = run.run_id
        self._hub.returning.note(run, entry, record)
        record.charge = self.shares.lent(run.run_id, pace.expected_s)
        assert member.parked is not None
        member.parked.set_result({"lease": lease.to_dict()})
        member.parked, member.seen_s = None, now
        return record

    def out_of_budget(self, run: Run, entry: Entry) -> None:
        """The entry halts: its run's budget, or its user's, has no room for a lease."""
        if entry.halt:
            return
        entry.halt, entry.error, said = "budget", None, "The budget is used up: the next lease would overspend it."
        if self._hub.purses.binds(run):
            error = self._hub.purses.exhausted(run)
            entry.error, said = error_of(error), f"{error.message[0].upper()}{error.message[1:]}."
        run.say("budget", self._hub.clock.now(), said)
        entry.changed.notify()
