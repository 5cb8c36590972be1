"""Gives out leases: which member gets which units when. Synchronous: nothing here waits, so nothing races."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depin_nb.core.amount import Amount
from depin_nb.core.lease import Lease, Unit
from depin_nb.hub.leases.entry import Entry, LeaseRecord, Round
from depin_nb.hub.leases.gang import GangCall
from depin_nb.hub.leases.members import Member
from depin_nb.hub.leases.rounds import DEADLINE_FACTOR, Pace, ahead, fair_share, fastest, round_units, solo_length, worth_doubling
from depin_nb.hub.run import Run
from depin_nb.metering.bytime import flops_of_time
from depin_nb.metering.meter import lease_cost
from depin_nb.training import strategy
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

MUSTER_S = 1.0  # a member that spoke so recently is on its way back for its next lease: a round waits for it
SOLO_PIPELINE = 4  # rounds of a solo entry at once: one merging, one handed in, one at work, one ahead


class Giving:
    """The part of the coordinator that decides who gets which lease."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self._turn = 0

    def dispatch(self) -> None:
        """Gives every lease that can be given now. Runs take turns, so that several share the workers."""
        wanting = [r for r in self._hub.runs.values() if r.leasing and r.entry is not None]
        self._turn += 1
        for i in range(len(wanting)):
            run = wanting[(i + self._turn) % len(wanting)]
            assert run.entry is not None
            serve = {"solo": self._serve_solo, "local": self._serve_local, "gang": self._serve_gang}[run.entry.held]
            serve(run, run.entry)

    def _share(self, run: Run) -> int:
        """The most members that a round of this run may have, with the other runs that want some."""
        held = [r.entry.held for r in self._hub.runs.values() if r.leasing and r.entry is not None and r is not run]
        solo = held.count("solo")
        return fair_share(len(self.members(run)), solo, 1 + len(held) - solo)

    def members(self, run: Run) -> list[Member]:
        """The members that the run may use: those on this machine only for a `local` run, which counts on fast links."""
        here = [m for m in self._hub.members.values() if run.backend != "local" or m.backend == "local"]
        needed = run.entry.spec.packages if run.entry is not None else {}
        able = [m for m in here if not m.barred(run.run_id) and not m.lacks(needed)]
        # those that have worked for it stay; among the others who came first
        return sorted(able, key=lambda m: m.worker_id not in run.tallies)[: run.most_workers]

    def _muster(self, run: Run) -> list[Member]:
        """The free members that wait for a lease; nobody while one of the free is on its way back."""
        free = [m for m in self.members(run) if m.free]
        now = self._hub.clock.monotonic()
        if any(m.parked is None and now - m.seen_s < MUSTER_S for m in free):
            return []
        parked = sorted((m for m in free if m.parked is not None), key=lambda m: m.worker_id)
        return parked[: self._share(run)]

    def _may_open(self, entry: Entry, wanted: int) -> bool:
        """Enough units, or none that will come before some of these are done."""
        return entry.open_units >= wanted or (entry.open_units > 0 and (entry.closed or entry.polls > 0 or entry.exit_at is not None))

    def _rates(self, run: Run, entry: Entry, members: Sequence[Member]) -> dict[str, float]:
        return {m.worker_id: m.rate(run.run_id, entry.spec.seconds_per_iteration) for m in members}

    def _serve_solo(self, run: Run, entry: Entry) -> None:
        if len(entry.rounds) >= SOLO_PIPELINE or not self._may_open(entry, 1):
            return
        member = self._solo_member(run, entry)
        if member is None:
            return
        overhead_s = member.overheads.get(run.run_id, 0.0)
        entry.solo_length = solo_length(entry.solo_length, member.rates.get(run.run_id), overhead_s)
        # each round before it makes one version
        rnd = Round("solo", run.version + sum(1 for r in entry.rounds if not r.committed))
        if self._lend_contiguous(run, entry, rnd, member, entry.solo_length):
            entry.solo_worker = run.solo_worker = member.worker_id
            entry.rounds.append(rnd)

    def _solo_member(self, run: Run, entry: Entry) -> Member | None:
        """Who gets the next solo lease. The entry's own worker gets one ahead, unless another run may want it meanwhile."""
        if entry.solo_worker:
            alone = all(r is run or not r.leasing for r in self._hub.runs.values())
            mine = [m for m in self.members(run) if m.worker_id == entry.solo_worker and m.room and (m.free or alone)]
            return mine[0] if mine else None
        mustered = self._muster(run)
        best = fastest(self._rates(run, entry, mustered)) if mustered else ""
        return next((m for name in (run.solo_worker, best) for m in mustered if m.worker_id == name), None)

    def _serve_local(self, run: Run, entry: Entry) -> None:
        if (rnd := entry.round) is not None:
            self._join_round(run, entry, rnd)
            self._double(run, entry, rnd)
            return
        if entry.busy:
            return
        members = self._muster(run)
        wanted = round_units("local", entry.spec.strategy, len(members), 0)
        if not members or not self._may_open(entry, wanted):
            return
        # one unit stays back as long as the kernel may close the entry later: the last round has to be known as the last
        usable = entry.open_units - (0 if entry.closed or entry.spec.total is not None else 1)
        if usable < 1:
            usable = entry.open_units
        rnd = Round("local", run.version)
        by_id = {m.worker_id: m for m in members}
        for worker_id, count in strategy.cut(usable, self._rates(run, entry, members), entry.spec.strategy).items():
            if not self._lend_contiguous(run, entry, rnd, by_id[worker_id], count):
                break
        self._opened(entry, rnd)

    def _join_round(self, run: Run, entry: Entry, rnd: Round) -> None:
        """What a lost member left open goes to a member that came in mid-round; the others wait for the next round.

        Where the loop may be left early it goes to any member, since what follows it can't be merged before it.
        """
        for member in self.members(run):
            lost = entry.peek(entry.spec.strategy.inner_steps, contiguous=True, among=rnd.lost) if rnd.lost else []
            if lost and member.free and member.parked is not None and (entry.spec.contiguous or rnd.takes(member)):
                if not self._lend_contiguous(run, entry, rnd, member, len(lost), among=rnd.lost):
                    return
                rnd.lost.difference_update(set(lost).difference(entry.peek(len(lost), contiguous=False, among=lost)))

    def _double(self, run: Run, entry: Entry, rnd: Round) -> None:
        """Idle members do again what silent or late ones, or at the loop's end the slowest, have out: the first valid report counts."""
        now = self._hub.clock.monotonic()
        out = [r for r in rnd.records if r.at(LeaseState.LEASED) and r.twin is None and r.begun_s is not None]
        idle = [m for m in self.members(run) if m.free and m.parked is not None]
        rates = self._rates(run, entry, idle)
        for member in sorted(idle, key=lambda m: -rates[m.worker_id]):
            needed_s = {id(r): self._pace(run, entry, member, len(r.lease.units)).expected_s for r in out}
            late = [
                r
                for r in out
                if r.member is not member
                and worth_doubling(now - (r.begun_s or now), r.pace, needed_s[id(r)], silent=r.member.silent(now), at_end=entry.is_final())
            ]
            if not late:
                continue
            slowest = max(late, key=lambda r: (r.member.silent(now), (r.begun_s or 0.0) + r.pace.expected_s))
            if not run.budget.allows(self._worst(entry, member, len(slowest.lease.units))):
                return
            out.remove(slowest)
            record = self._lend(run, entry, rnd, member, slowest.lease.units)
            record.twin, slowest.twin = slowest, record
            why = "is silent" if slowest.member.silent(now) else "is slow"
            run.say(
                "doubled",
                self._hub.clock.now(),
                worker=slowest.member.worker_id,
                by=member.worker_id,
                lease=slowest.lease.lease_id,
                why=why,
            )

    def _pace(self, run: Run, entry: Entry, member: Member, units: int) -> Pace:
        rate = member.rate(run.run_id, entry.spec.seconds_per_iteration)
        ratios = tuple(member.ratios.get(run.run_id, ()))
        return Pace(units, rate, member.overheads.get(run.run_id), self._hub.transfer_bytes(run, entry), ratios)

    def awaits(self, run: Run, entry: Entry, rnd: Round) -> bool:
        """Whether the round stays open for somebody to do what a lost member left: see `EntrySpec.contiguous`."""
        if entry.gap(rnd) is None or rnd.kind != "local" or entry.halt or not run.leasing:
            return False
        now = self._hub.clock.monotonic()
        return any(m.free and (m.parked is not None or now - m.seen_s < MUSTER_S) for m in self.members(run))

    def _serve_gang(self, run: Run, entry: Entry) -> None:
        if entry.busy:
            return
        members = self._muster(run)
        config = entry.spec.strategy
        if not members or not self._may_open(entry, round_units("gang", config, len(members), 0)):
            return
        limit = entry.gang_limit
        span = entry.peek(max(1, config.inner_steps) * len(members), contiguous=True, at_most=limit)
        parts = strategy.cut_gang(len(span), len(members), config, closed=True)
        if not entry.closed and limit is None and entry.exit_at is None:
            parts = strategy.cut_gang(len(span), len(members), config, closed=False) or parts
        if not parts:
            return
        units = [entry.unit_of(i) for i in span[: sum(len(p.units) for p in parts)]]
        costs = [self._worst(entry, m, len(p.units)) for m, p in zip(members, parts, strict=False)]
        if not run.budget.allows(sum(costs[1:], costs[0])):
            self._out_of_budget(run, entry)
            return
        size = len(parts)
        weights = [sum(u.samples for u in units[i : i + size]) for i in range(0, len(units), size)]
        gang = GangCall(f"{run.run_id}-{entry.entry_id}-g{entry.leases}", size, self._hub.executor, self._hub.change_limit(run))
        rnd = Round("gang", run.version, gang=gang)
        taken = entry.take([u.index for u in units])
        for member, part in zip(members, parts, strict=False):
            own = tuple(taken[i] for i in part.units)
            samples = tuple(weights[g] for g in part.groups)
            self._lend(run, entry, rnd, member, own, gang.gang_id, part, samples, size)
        self._opened(entry, rnd)

    def _opened(self, entry: Entry, rnd: Round) -> None:
        if rnd.records:
            entry.rounds.append(rnd)
            entry.changed.notify()  # the kernel may send more

    def _worst(self, entry: Entry, member: Member, units: int) -> Amount:
        flops = entry.spec.flops_per_iteration * units
        if entry.spec.limit_s:
            flops = flops_of_time(self._hub.prices, member.profile, entry.spec.limit_s)
        return lease_cost(self._hub.prices, member.profile, flops)

    def _lend_contiguous(self, run: Run, entry: Entry, rnd: Round, member: Member, count: int, among: set[int] | None = None) -> bool:
        """Lends up to `count` units, fewer where only fewer fit the budget. False, and the entry halts, when not even one does."""
        indices = entry.peek(count, contiguous=True, among=among)
        while indices and not run.budget.allows(self._worst(entry, member, len(indices))):
            indices = indices[: len(indices) // 2]
            if not indices:
                self._out_of_budget(run, entry)
                return False
        if not indices:
            return False
        self._lend(run, entry, rnd, member, entry.take(indices))
        return True

    def _lend(
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
        cost = self._worst(entry, member, len(units))
        run.budget = run.budget.reserve(cost)
        pace = self._pace(run, entry, member, len(units))
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
        assert member.parked is not None
        member.parked.set_result({"lease": lease.to_dict()})
        member.parked, member.seen_s = None, now
        return record

    def _out_of_budget(self, run: Run, entry: Entry) -> None:
        if not entry.halt:
            entry.halt = "budget"
            run.say("budget", self._hub.clock.now(), "The budget is used up: the next lease would overspend it.")
            entry.changed.notify()

    def want(self, run: Run, entry: Entry) -> int:
        """Units that the kernel should send now."""
        workers = max(1, len(self.members(run)))
        member = next((m for m in self._hub.members.values() if m.worker_id == entry.solo_worker), None)
        rate = member.rates.get(run.run_id) if member else None
        return entry.want(ahead(entry.held, entry.spec.strategy, workers, entry.solo_length, rate))
