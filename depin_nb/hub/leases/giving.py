"""Gives out leases: which member gets which units when. Synchronous: nothing here waits, so nothing races."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from depin_nb.core.lease import SOLO_SEATS
from depin_nb.hub.leases.entry import OUT, Entry, Round
from depin_nb.hub.leases.gang import GangCall
from depin_nb.hub.leases.members import Member
from depin_nb.hub.leases.muster import MUSTER_S
from depin_nb.hub.leases.rounds import (
    PATIENCE,
    PATIENCE_MIN_S,
    ahead,
    fastest,
    lease_steps,
    round_units,
    solo_length,
    worth_doubling,
)
from depin_nb.hub.run import Run
from depin_nb.training import strategy
from depin_nb.training.lifecycle import LeaseState

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

SOLO_PIPELINE = 4  # rounds of a solo entry at once: one merging, one handed in, one at work, one ahead


class Giving:
    """The part of the coordinator that decides who gets which lease."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub, self._muster, self._lending = hub, hub.muster, hub.lending
        self._shares = hub.lending.shares

    def dispatch(self) -> None:
        """Gives every lease that can be given now, in the order of the runs' shares."""
        members = self._hub.members
        if not members.parked:
            return
        wanting = self._muster.wanting()
        self._shares.set({run.run_id: run.claim for run in wanting.values()})
        self._muster.kept = {}
        left = set(wanting)
        while left and members.parked:
            run_id = self._shares.next(left)
            run, entry = wanting[run_id], wanting[run_id].entry
            assert entry is not None
            before = entry.leases
            if not self._muster.keeps(run, entry, len(wanting)):
                {"solo": self._serve_solo, "local": self._serve_local, "gang": self._serve_gang}[entry.held](run, entry)
            if entry.leases == before:
                left.discard(run_id)
            else:
                self._muster.since.pop(run_id, None)
        members.looked()

    def _rates(self, run: Run, entry: Entry, members: Sequence[Member]) -> dict[str, float]:
        return {m.worker_id: m.rate(run.run_id, entry.spec.seconds_per_iteration) for m in members}

    def _serve_solo(self, run: Run, entry: Entry) -> None:
        if len(entry.rounds) >= SOLO_PIPELINE or not self._muster.may_open(entry, 1):
            return
        member = self._solo_member(run, entry)
        if member is None:
            return
        overhead_s = member.overheads.get(run.run_id, 0.0)
        entry.solo_length = solo_length(entry.solo_length, member.rates.get(run.run_id), overhead_s)
        # each round before it makes one version
        rnd = Round("solo", run.version + sum(1 for r in entry.rounds if not r.committed))
        if self._lending.contiguous(run, entry, rnd, member, entry.solo_length):
            entry.solo_worker = run.solo_worker = member.worker_id
            entry.rounds.append(rnd)

    def _solo_member(self, run: Run, entry: Entry) -> Member | None:
        """Who gets the next solo lease. The entry's own worker gets one ahead, unless another run may want it meanwhile."""
        if entry.solo_worker:
            alone = len(self._muster.wanting()) < 2
            mine = [m for m in self._muster.allowed(run).values() if m.worker_id == entry.solo_worker and m.room and (m.free or alone)]
            return next((m for m in mine if self._muster.kept.get(m.address, run.run_id) == run.run_id), None)
        living = self._living()
        mustered = [m for m in self._muster.free(run) if living[m.worker_id] < SOLO_SEATS]
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
        members = self._muster.free(run)
        rates = self._rates(run, entry, members)
        config = replace(entry.spec.strategy, inner_steps=lease_steps(entry.spec.strategy, rates.values(), self._transfer_s(run, members)))
        if not members or not self._muster.may_open(entry, round_units("local", config, len(members), 0)):
            return
        # one unit stays back as long as the kernel may close the entry later: the last round has to be known as the last
        usable = entry.open_units - (0 if entry.closed or entry.spec.total is not None else 1)
        if usable < 1:
            usable = entry.open_units
        rnd = rnd or Round("local", run.version)  # or what is late, and merges with these
        by_id = {m.worker_id: m for m in members}
        for worker_id, count in strategy.cut(usable, rates, config).items():
            if not self._lending.contiguous(run, entry, rnd, by_id[worker_id], count):
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
        for member in self._muster.idle(run, self._hub.members.parked) if rnd.lost else []:
            lost = entry.peek(entry.spec.strategy.inner_steps, contiguous=True, among=rnd.lost) if rnd.lost else []
            if lost and member.free and member.parked is not None and (entry.spec.contiguous or rnd.takes(member)):
                if not self._lending.contiguous(run, entry, rnd, member, len(lost), among=rnd.lost):
                    return
                rnd.lost.difference_update(set(lost).difference(entry.peek(len(lost), contiguous=False, among=lost)))

    def _fill(self, run: Run, entry: Entry, rnd: Round) -> None:
        """Newcomers, and who is done well before the others, work for the same merge: as much as fits until those are done. Where nobody
        knows when they will be, a newcomer gets a round's worth."""
        if entry.spec.contiguous:
            return
        idle = self._muster.idle(run, self._hub.members.parked)
        back = 0 if entry.closed or entry.spec.total is not None else 1
        if not idle or entry.open_units <= back:
            return
        now, fresh = self._hub.clock.monotonic(), rnd.fresh
        out = [r for r in fresh if r.at(LeaseState.LEASED) and r.pace.known and r.begun_s is not None]
        left_s = max(((r.begun_s or now) + r.pace.expected_s - now for r in out), default=0.0)
        least_s = max(PATIENCE_MIN_S, PATIENCE * max((r.pace.expected_s for r in out), default=0.0))
        if 0 < left_s <= least_s:
            return  # the next round is near
        part_of_it = {r.member.address for r in fresh}
        for member in idle:
            count = entry.spec.strategy.inner_steps
            if left_s > least_s:
                pace = self._lending.pace(run, entry, member, 1)
                count = min(count, int((left_s - (pace.overhead_s or 0.0)) * pace.rate))
            elif member.address in part_of_it:
                continue  # it is for the others to make
            count = min(count, entry.open_units - back)
            if count > 0 and not self._lending.contiguous(run, entry, rnd, member, count):
                return

    def _double(self, run: Run, entry: Entry, rnd: Round) -> None:
        """Idle members do again what silent or late ones, or at the loop's end the slowest, have out: the first valid report counts."""
        idle = self._muster.looking(run, entry, rnd)
        if not idle:
            return
        now = self._hub.clock.monotonic()
        out = [r for r in rnd.records if r.at(LeaseState.LEASED) and r.twin is None and r.begun_s is not None]
        out = [r for r in out if r.member.silent(now) or entry.is_final() or now - (r.begun_s or now) > r.pace.late_s]
        rnd.late = bool(out)
        rates = self._rates(run, entry, idle)
        for member in sorted(idle, key=lambda m: -rates[m.worker_id]):
            needed_s = {id(r): self._lending.pace(run, entry, member, len(r.lease.units)).expected_s for r in out}
            late = [
                r
                for r in out
                if r.member is not member
                and worth_doubling(now - (r.begun_s or now), r.pace, needed_s[id(r)], silent=r.member.silent(now), at_end=entry.is_final())
            ]
            if not late:
                continue
            slowest = max(late, key=lambda r: (r.member.silent(now), (r.begun_s or 0.0) + r.pace.expected_s))
            if not self._hub.purses.allows(run, self._lending.worst(entry, member, len(slowest.lease.units))):
                return
            out.remove(slowest)
            record = self._lending.lend(run, entry, rnd, member, slowest.lease.units)
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

    def awaits(self, run: Run, entry: Entry, rnd: Round) -> bool:
        """Whether the round stays open for somebody to do what a lost member left: see `EntrySpec.contiguous`."""
        if entry.gap(rnd) is None or rnd.kind != "local" or entry.halt or not run.leasing:
            return False
        now = self._hub.clock.monotonic()
        return any(m.free and (m.parked is not None or now - m.seen_s < MUSTER_S) for m in self._muster.allowed(run).values())

    def _serve_gang(self, run: Run, entry: Entry) -> None:
        if entry.busy:
            return
        members = self._muster.free(run)
        config = entry.spec.strategy
        if not members or not self._muster.may_open(entry, round_units("gang", config, len(members), 0)):
            return
        limit = entry.gang_limit
        span = entry.peek(max(1, config.inner_steps) * len(members), contiguous=True, at_most=limit)
        parts = strategy.cut_gang(len(span), len(members), config, closed=True)
        if not entry.closed and limit is None and entry.exit_at is None:
            parts = strategy.cut_gang(len(span), len(members), config, closed=False) or parts
        if not parts:
            return
        units = [entry.unit_of(i) for i in span[: sum(len(p.units) for p in parts)]]
        costs = [self._lending.worst(entry, m, len(p.units)) for m, p in zip(members, parts, strict=False)]
        if not self._hub.purses.allows(run, sum(costs[1:], costs[0])):
            self._lending.out_of_budget(run, entry)
            return
        size = len(parts)
        weights = [sum(u.samples for u in units[i : i + size]) for i in range(0, len(units), size)]
        gang = GangCall(f"{run.run_id}-{entry.entry_id}-g{entry.leases}", size, self._hub.executor, self._hub.change_limit(run))
        rnd = Round("gang", run.version, gang=gang)
        taken = entry.take([u.index for u in units])
        for member, part in zip(members, parts, strict=False):
            own = tuple(taken[i] for i in part.units)
            samples = tuple(weights[g] for g in part.groups)
            self._lending.lend(run, entry, rnd, member, own, gang.gang_id, part, samples, size)
        self._opened(entry, rnd)

    def _opened(self, entry: Entry, rnd: Round) -> None:
        if rnd.records:
            if rnd not in entry.rounds:
                entry.rounds.append(rnd)
            entry.changed.notify()  # the kernel may send more

    def want(self, run: Run, entry: Entry) -> int:
        """Units that the kernel should send now."""
        workers = max(1, len(self._muster.allowed(run)))
        member = (
            next((m for m in self._muster.allowed(run).values() if m.worker_id == entry.solo_worker), None) if entry.solo_worker else None
        )
        rate = member.rates.get(run.run_id) if member else None
        return entry.want(ahead(entry.held, entry.spec.strategy, workers, entry.solo_length, rate))
