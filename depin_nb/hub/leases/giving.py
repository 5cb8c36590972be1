"""Gives out leases: which member gets which units when. Synchronous: nothing here waits, so nothing races."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import Amount
from depin_nb.core.lease import SOLO_SEATS, Lease, Unit
from depin_nb.hub.answers import error_of
from depin_nb.hub.leases.entry import OUT, Entry, LeaseRecord, Round
from depin_nb.hub.leases.gang import GangCall
from depin_nb.hub.leases.members import Member
from depin_nb.hub.leases.rounds import (
    DEADLINE_FACTOR,
    PATIENCE,
    PATIENCE_MIN_S,
    Pace,
    ahead,
    fastest,
    lease_steps,
    round_units,
    solo_length,
    worth_doubling,
)
from depin_nb.hub.leases.shares import Shares, fractions, portions
from depin_nb.hub.run import Run
from depin_nb.metering.bytime import flops_of_time
from depin_nb.metering.meter import lease_cost
from depin_nb.training import strategy
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

LOOK_S = 0.2  # what all idle members could do again is looked at so often; what a newly idle one could, at once
KEPT_S = 10.0  # so long idle members are kept for a run that needs several at once; then it goes with those that there are
MUSTER_S = 1.0  # a member that spoke so recently is on its way back for its next lease: a round waits for it
SOLO_PIPELINE = 4  # rounds of a solo entry at once: one merging, one handed in, one at work, one ahead


class Giving:
    """The part of the coordinator that decides who gets which lease."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self._shares = Shares()
        self._kept: dict[str, str] = {}  # member -> the run that it is kept for, as of this dispatch
        self._mustering: dict[str, float] = {}  # run -> since when members are kept for it
        self._able: dict[str, tuple[tuple[Any, ...], dict[str, Member]]] = {}  # by run: what its members follow from, and they

    def dispatch(self) -> None:
        """Gives every lease that can be given now, in the order of the runs' shares."""
        members = self._hub.members
        if not members.parked:
            return
        wanting = self._wanting()
        self._shares.set({run.run_id: run.claim for run in wanting.values()})
        self._kept = {}
        left = set(wanting)
        while left and members.parked:
            run_id = self._shares.next(left)
            run, entry = wanting[run_id], wanting[run_id].entry
            assert entry is not None
            before = entry.leases
            if not self._musters(run, entry, len(wanting)):
                {"solo": self._serve_solo, "local": self._serve_local, "gang": self._serve_gang}[entry.held](run, entry)
            if entry.leases == before:
                left.discard(run_id)
            else:
                self._mustering.pop(run_id, None)
        members.looked()

    def _wanting(self) -> dict[str, Run]:
        return {r.run_id: r for r in self._hub.runs.values() if r.leasing and r.entry is not None}

    def _portion(self, run: Run) -> float:
        """How many members the run is due beside the other runs that want some."""
        wanting = {**self._wanting(), run.run_id: run}
        due = fractions({run_id: r.claim for run_id, r in wanting.items()})
        most = {run_id: r.most_workers or math.inf for run_id, r in wanting.items()}
        most |= {run_id: 1 for run_id, r in wanting.items() if r.entry is not None and r.entry.held == "solo"}
        return portions(due, most, len(self._allowed(run)))[run.run_id]

    def _share(self, run: Run) -> int:
        """The most members that a round of this run may have, with the other runs that want some."""
        return max(1, math.ceil(round(self._portion(run), 6)))

    def _musters(self, run: Run, entry: Entry, runs: int) -> bool:
        """Whether the run, whose turn it is, waits for more members before it opens a round: those that are idle are kept for it.

        Else runs that need one member at a time would take each as it gets free, and a gang would never meet.
        """
        if runs < 2 or entry.held == "solo" or entry.busy:
            return False
        wanted = max(1, math.floor(round(self._portion(run), 6)))
        idle = self._idle(run, self._hub.members.parked)
        if len(idle) >= wanted or not self._may_open(entry, wanted if entry.held == "gang" else 1):
            return False
        now = self._hub.clock.monotonic()
        if now - self._mustering.setdefault(run.run_id, now) > KEPT_S:
            return False
        self._kept.update((m.address, run.run_id) for m in idle)
        return True

    def returned(self, record: LeaseRecord) -> None:
        """A lease isn't out any more: its run's share is charged with what it took."""
        if record.charge is not None:
            began_s = self._hub.clock.monotonic() if record.begun_s is None else record.begun_s
            self._shares.ended(record.charge, self._hub.clock.monotonic() - began_s)
            record.charge = None

    def members(self, run: Run) -> list[Member]:
        """The members that the run may use: those on this machine only for a `local` run, which counts on fast links."""
        return list(self._allowed(run).values())

    def _allowed(self, run: Run) -> dict[str, Member]:
        """The same by address; found anew only when something changed on which it depends."""
        entry_id = run.entry.entry_id if run.entry is not None else 0
        causes = (self._hub.members.generation, entry_id, len(run.tallies), run.most_workers)
        known = self._able.get(run.run_id)
        if known is None or known[0] != causes:
            self._able = {r: found for r, found in self._able.items() if r in self._hub.runs}
            known = self._able[run.run_id] = causes, {m.address: m for m in self._found(run)}
        return known[1]

    def _found(self, run: Run) -> list[Member]:
        here = [m for m in self._hub.members.values() if run.backend != "local" or m.backend == "local"]
        needed = run.entry.spec.packages if run.entry is not None else {}
        memory_bytes = run.entry.spec.memory_bytes if run.entry is not None else 0
        able = [m for m in here if not m.barred(run.run_id) and not m.lacks(needed) and m.fits(memory_bytes)]
        # those that have worked for it stay; among the others who came first
        return sorted(able, key=lambda m: m.worker_id not in run.tallies)[: run.most_workers]

    def _idle(self, run: Run, among: Mapping[str, Member]) -> list[Member]:
        """Those of the run's members that have nothing in hand and wait for a lease, in the order in which they came."""
        allowed, kept = self._allowed(run), self._kept
        free = [m for m in among.values() if m.free and m.parked is not None and m.address in allowed]
        return [m for m in free if kept.get(m.address, run.run_id) == run.run_id] if kept else free

    def _muster(self, run: Run) -> list[Member]:
        """The free members that wait for a lease; nobody while one of the free is on its way back, if no other run would use the time."""
        now = self._hub.clock.monotonic()
        alone = len(self._wanting()) < 2
        if alone and any(m.parked is None and m.free and now - m.seen_s < MUSTER_S for m in self._allowed(run).values()):
            return []
        return sorted(self._idle(run, self._hub.members.parked), key=lambda m: m.worker_id)[: self._share(run)]

    def _looking(self, run: Run, entry: Entry, rnd: Round) -> list[Member]:
        """The idle members for which the round's leases are looked at now: all every LOOK_S and where leases have come; in between
        those that are newly idle, if anything is left for them."""
        now, members = self._hub.clock.monotonic(), self._hub.members
        if now - rnd.looked_s < LOOK_S and rnd.looked == len(rnd.records):
            return self._idle(run, members.fresh) if rnd.late or entry.is_final() else []
        idle = self._idle(run, members.parked)
        if idle:
            rnd.looked_s, rnd.looked = now, len(rnd.records)
        return idle

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
            alone = len(self._wanting()) < 2
            mine = [m for m in self._allowed(run).values() if m.worker_id == entry.solo_worker and m.room and (m.free or alone)]
            return next((m for m in mine if self._kept.get(m.address, run.run_id) == run.run_id), None)
        living = self._living()
        mustered = [m for m in self._muster(run) if living[m.worker_id] < SOLO_SEATS]
        if not mustered:
            return None
        rates = self._rates(run, entry, mustered)
        least = min(living[m.worker_id] for m in mustered)
        at_least = [m for m in mustered if living[m.worker_id] == least]
        best = fastest({m.worker_id: rates[m.worker_id] for m in at_least})
        return next(m for name in (run.solo_worker, best) for m in at_least if m.worker_id == name)

    def _living(self) -> Counter[str]:
        """How many solo entries have their objects on each worker, by worker id: they can't go on anywhere else."""
        return Counter(r.entry.solo_worker for r in self._hub.runs.values() if r.entry is not None and r.entry.solo_worker)

    def _serve_local(self, run: Run, entry: Entry) -> None:
        if any(r.merging for r in entry.rounds):
            return
        rnd = entry.round
        if rnd is not None and any(r.state in (*OUT, LeaseState.ACCEPTED) for r in rnd.fresh):  # not only late ones
            self._join_round(run, entry, rnd)
            self._fill(run, entry, rnd)
            self._double(run, entry, rnd)
            return
        members = self._muster(run)
        rates = self._rates(run, entry, members)
        config = replace(entry.spec.strategy, inner_steps=lease_steps(entry.spec.strategy, rates.values(), self._transfer_s(run, members)))
        if not members or not self._may_open(entry, round_units("local", config, len(members), 0)):
            return
        # one unit stays back as long as the kernel may close the entry later: the last round has to be known as the last
        usable = entry.open_units - (0 if entry.closed or entry.spec.total is not None else 1)
        if usable < 1:
            usable = entry.open_units
        rnd = rnd or Round("local", run.version)  # or what is late, and merges with these
        by_id = {m.worker_id: m for m in members}
        for worker_id, count in strategy.cut(usable, rates, config).items():
            if not self._lend_contiguous(run, entry, rnd, by_id[worker_id], count):
                break
        self._opened(entry, rnd)

    @staticmethod
    def _transfer_s(run: Run, members: Sequence[Member]) -> float:
        """What handing in a change takes on the slowest of their links, by what they measured; 0 where nothing is known."""
        return max((8e-6 * run.change_bytes / m.up_mbit_s for m in members if m.up_mbit_s), default=0.0)

    def _join_round(self, run: Run, entry: Entry, rnd: Round) -> None:
        """What a lost member left open goes to a member that came in mid-round; the others wait for the next round.

        Where the loop may be left early it goes to any member, since what follows it can't be merged before it.
        """
        for member in self._idle(run, self._hub.members.parked) if rnd.lost else []:
            lost = entry.peek(entry.spec.strategy.inner_steps, contiguous=True, among=rnd.lost) if rnd.lost else []
            if lost and member.free and member.parked is not None and (entry.spec.contiguous or rnd.takes(member)):
                if not self._lend_contiguous(run, entry, rnd, member, len(lost), among=rnd.lost):
                    return
                rnd.lost.difference_update(set(lost).difference(entry.peek(len(lost), contiguous=False, among=lost)))

    def _fill(self, run: Run, entry: Entry, rnd: Round) -> None:
        """Newcomers, and who is done well before the others, work for the same merge: as much as fits until those are done. Where nobody
        knows when they will be, a newcomer gets a round's worth."""
        if entry.spec.contiguous:
            return
        now = self._hub.clock.monotonic()
        out = [r for r in rnd.fresh if r.at(LeaseState.LEASED) and r.pace.known and r.begun_s is not None]
        left_s = max(((r.begun_s or now) + r.pace.expected_s - now for r in out), default=0.0)
        least_s = max(PATIENCE_MIN_S, PATIENCE * max((r.pace.expected_s for r in out), default=0.0))
        back = 0 if entry.closed or entry.spec.total is not None else 1
        for member in [m for m in self.members(run) if m.free and m.parked is not None]:
            count = entry.spec.strategy.inner_steps
            if left_s > least_s:
                pace = self.pace(run, entry, member, 1)
                count = min(count, int((left_s - (pace.overhead_s or 0.0)) * pace.rate))
            elif left_s > 0 or any(r.member is member for r in rnd.fresh):
                continue  # the next round is near, or for the others to make
            count = min(count, entry.open_units - back)
            if count > 0 and not self._lend_contiguous(run, entry, rnd, member, count):
                return

    def _double(self, run: Run, entry: Entry, rnd: Round) -> None:
        """Idle members do again what silent or late ones, or at the loop's end the slowest, have out: the first valid report counts."""
        idle = self._looking(run, entry, rnd)
        if not idle:
            return
        now = self._hub.clock.monotonic()
        out = [r for r in rnd.records if r.at(LeaseState.LEASED) and r.twin is None and r.begun_s is not None]
        out = [r for r in out if r.member.silent(now) or entry.is_final() or now - (r.begun_s or now) > r.pace.late_s]
        rnd.late = bool(out)
        rates = self._rates(run, entry, idle)
        for member in sorted(idle, key=lambda m: -rates[m.worker_id]):
            needed_s = {id(r): self.pace(run, entry, member, len(r.lease.units)).expected_s for r in out}
            late = [
                r
                for r in out
                if r.member is not member
                and worth_doubling(now - (r.begun_s or now), r.pace, needed_s[id(r)], silent=r.member.silent(now), at_end=entry.is_final())
            ]
            if not late:
                continue
            slowest = max(late, key=lambda r: (r.member.silent(now), (r.begun_s or 0.0) + r.pace.expected_s))
            if not self._hub.purses.allows(run, self.worst(entry, member, len(slowest.lease.units))):
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

    def pace(self, run: Run, entry: Entry, member: Member, units: int) -> Pace:
        rate = member.rate(run.run_id, entry.spec.seconds_per_iteration)
        ratios = tuple(member.ratios.get(run.run_id, ()))
        return Pace(units, rate, member.overheads.get(run.run_id), self._hub.transfer_bytes(run, entry), ratios)

    def awaits(self, run: Run, entry: Entry, rnd: Round) -> bool:
        """Whether the round stays open for somebody to do what a lost member left: see `EntrySpec.contiguous`."""
        if entry.gap(rnd) is None or rnd.kind != "local" or entry.halt or not run.leasing:
            return False
        now = self._hub.clock.monotonic()
        return any(m.free and (m.parked is not None or now - m.seen_s < MUSTER_S) for m in self._allowed(run).values())

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
        costs = [self.worst(entry, m, len(p.units)) for m, p in zip(members, parts, strict=False)]
        if not self._hub.purses.allows(run, sum(costs[1:], costs[0])):
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
            if rnd not in entry.rounds:
                entry.rounds.append(rnd)
            entry.changed.notify()  # the kernel may send more

    def worst(self, entry: Entry, member: Member, units: int) -> Amount:
        flops = entry.spec.flops_per_iteration * units
        if entry.spec.limit_s:
            flops = flops_of_time(self._hub.prices, member.profile, entry.spec.limit_s)
        return lease_cost(self._hub.prices, member.profile, flops)

    def _lend_contiguous(self, run: Run, entry: Entry, rnd: Round, member: Member, count: int, among: set[int] | None = None) -> bool:
        """Lends up to `count` units, fewer where only fewer fit the budget. False, and the entry halts, when not even one does."""
        indices = entry.peek(count, contiguous=True, among=among)
        while indices and not self._hub.purses.allows(run, self.worst(entry, member, len(indices))):
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
        record.charge = self._shares.lent(run.run_id, pace.expected_s)
        assert member.parked is not None
        member.parked.set_result({"lease": lease.to_dict()})
        member.parked, member.seen_s = None, now
        return record

    def _out_of_budget(self, run: Run, entry: Entry) -> None:
        if entry.halt:
            return
        entry.halt, entry.error, said = "budget", None, "The budget is used up: the next lease would overspend it."
        if self._hub.purses.binds(run):
            error = self._hub.purses.exhausted(run)
            entry.error, said = error_of(error), f"{error.message[0].upper()}{error.message[1:]}."
        run.say("budget", self._hub.clock.now(), said)
        entry.changed.notify()

    def want(self, run: Run, entry: Entry) -> int:
        """Units that the kernel should send now."""
        workers = max(1, len(self._allowed(run)))
        member = next((m for m in self._allowed(run).values() if m.worker_id == entry.solo_worker), None) if entry.solo_worker else None
        rate = member.rates.get(run.run_id) if member else None
        return entry.want(ahead(entry.held, entry.spec.strategy, workers, entry.solo_length, rate))
