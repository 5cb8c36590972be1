"""Which members may work for a run, and how many it is due beside others. Synchronous, as giving.py is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from depin_nb.hub.leases.entry import Entry, Round
from depin_nb.hub.leases.members import Member
from depin_nb.hub.leases.shares import fractions, portions
from depin_nb.hub.run import Run

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

KEPT_S = 10.0  # so long idle members are kept for a run that needs several at once; then it goes with those that there are
LOOK_S = 0.2  # what all idle members could do again is looked at so often; what a newly idle one could, at once
MUSTER_S = 1.0  # a member that spoke so recently is on its way back for its next lease: a round waits for it


class Muster:
    """`kept`: member -> the run that it is kept for, as of this dispatch. `since`: run -> since when members are kept for it."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self.kept: dict[str, str] = {}
        self.since: dict[str, float] = {}
        self._able: dict[str, tuple[tuple[Any, ...], dict[str, Member]]] = {}  # by run: what its members follow from, and they

    def wanting(self) -> dict[str, Run]:
        return {r.run_id: r for r in self._hub.runs.values() if r.leasing and r.entry is not None}

    def portion(self, run: Run) -> float:
        """How many members the run is due beside the other runs that want some."""
        wanting = {**self.wanting(), run.run_id: run}
        due = fractions({run_id: r.claim for run_id, r in wanting.items()})
        most = {run_id: r.most_workers or math.inf for run_id, r in wanting.items()}
        most |= {run_id: 1 for run_id, r in wanting.items() if r.entry is not None and r.entry.held == "solo"}
        return portions(due, most, len(self.allowed(run)))[run.run_id]

    def share(self, run: Run) -> int:
        """The most members that a round of this run may have, with the other runs that want some."""
        return max(1, math.ceil(round(self.portion(run), 6)))

    def keeps(self, run: Run, entry: Entry, runs: int) -> bool:
        """Whether the run, whose turn it is, waits for more members before it opens a round: those that are idle are kept for it.

        Else runs that need one member at a time would take each as it gets free, and a gang would never meet.
        """
        if runs < 2 or entry.held == "solo" or entry.busy:
            return False
        wanted = max(1, math.floor(round(self.portion(run), 6)))
        idle = self.idle(run, self._hub.members.parked)
        if len(idle) >= wanted or not self.may_open(entry, wanted if entry.held == "gang" else 1):
            return False
        now = self._hub.clock.monotonic()
        if now - self.since.setdefault(run.run_id, now) > KEPT_S:
            return False
        self.kept.update((m.address, run.run_id) for m in idle)
        return True

    def members(self, run: Run) -> list[Member]:
        """The members that the run may use: those on this machine only for a `local` run, which counts on fast links."""
        return list(self.allowed(run).values())

    def allowed(self, run: Run) -> dict[str, Member]:
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

    def idle(self, run: Run, among: Mapping[str, Member]) -> list[Member]:
        """Those of the run's members that have nothing in hand and wait for a lease, in the order in which they came."""
        allowed, kept = self.allowed(run), self.kept
        free = [m for m in among.values() if m.free and m.parked is not None and m.address in allowed]
        return [m for m in free if kept.get(m.address, run.run_id) == run.run_id] if kept else free

    def free(self, run: Run) -> list[Member]:
        """The free members that wait for a lease; nobody while one of the free is on its way back, if no other run would use the time."""
        now = self._hub.clock.monotonic()
        alone = len(self.wanting()) < 2
        if alone and any(m.parked is None and m.free and now - m.seen_s < MUSTER_S for m in self.allowed(run).values()):
            return []
        return sorted(self.idle(run, self._hub.members.parked), key=lambda m: m.worker_id)[: self.share(run)]

    def looking(self, run: Run, entry: Entry, rnd: Round) -> list[Member]:
        """The idle members for which the round's leases are looked at now: all every LOOK_S and where leases have come; in between
        those that are newly idle, if anything is left for them."""
        now, members = self._hub.clock.monotonic(), self._hub.members
        if now - rnd.looked_s < LOOK_S and rnd.looked == len(rnd.records):
            return self.idle(run, members.fresh) if rnd.late or entry.is_final() else []
        idle = self.idle(run, members.parked)
        if idle:
            rnd.looked_s, rnd.looked = now, len(rnd.records)
        return idle

    def may_open(self, entry: Entry, wanted: int) -> bool:
        """Enough units, or none that will come before some of these are done."""
        return entry.open_units >= wanted or (entry.open_units > 0 and (entry.closed or entry.polls > 0 or entry.exit_at is not None))
