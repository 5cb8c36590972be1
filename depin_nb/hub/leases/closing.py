"""When a round of `local` merges: with everything, or with a quorum, and what is late belongs to the next one. Synchronous.

Buffered merging after FedBuff (arXiv:2106.06639): nobody waits for the slowest, and its change still counts, with less weight
(training/merge.py). Devices that keep time merge together, so that steady fleets lose nothing by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from depin_nb.hub.leases.entry import OUT, Entry, LeaseRecord, Round
from depin_nb.hub.leases.rounds import holds_up, quorum_s
from depin_nb.hub.run import Run
from depin_nb.training.lifecycle import LeaseState, Trigger
from depin_nb.training.strategy import MAX_STALENESS

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator


class Closing:
    """The part of the coordinator that says which rounds may merge."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    def ready(self, run: Run, entry: Entry, rnd: Round) -> bool:
        """Whether the round closes now. What is out of one that does is in the next round then."""
        if rnd.out:
            if not self._goes_ahead(run, entry, rnd) or self._hub.aggregation.awaits(run, entry, rnd):
                return False
            self._leave_late(run, entry, rnd)
        elif rnd.accepted and self._awaits_fresh(run, entry, rnd):
            return False
        if not rnd.accepted:
            return True
        return not (self._hub.giving.awaits(run, entry, rnd) or self._hub.aggregation.awaits(run, entry, rnd))

    @staticmethod
    def _may_leave(run: Run, entry: Entry) -> bool:
        """Whether there is other work meanwhile. A loop that may be left early merges in order, its end with everything."""
        return run.leasing and entry.open_units > 0 and entry.exit_at is None and not entry.spec.contiguous

    def _goes_ahead(self, run: Run, entry: Entry, rnd: Round) -> bool:
        quorum = entry.spec.strategy.quorum
        if rnd.kind != "local" or quorum >= 1 or not self._may_leave(run, entry):
            return False
        fresh = rnd.fresh
        if any(r.at(LeaseState.SUBMITTED) for r in rnd.records):  # here, and being examined
            return False
        here = [r for r in fresh if r.at(LeaseState.ACCEPTED) and not r.spare]
        out = [r for r in fresh if r.at(LeaseState.LEASED) and r.needed]
        since_s = quorum_s([(r.came_s, r.samples) for r in here], sum(r.samples for r in out), quorum)
        if not here or since_s is None:
            return False
        now = self._hub.clock.monotonic()
        round_s = max(r.took_s for r in here)
        return all(r.member.silent(now) or self._holds_up(r, now, since_s, round_s) for r in out)

    @staticmethod
    def _holds_up(record: LeaseRecord, now: float, since_s: float, round_s: float) -> bool:
        begun_s = now if record.begun_s is None else record.begun_s
        return holds_up(now - since_s, now - begun_s, record.pace, round_s)

    def _awaits_fresh(self, run: Run, entry: Entry, rnd: Round) -> bool:
        """Late changes alone aren't a merge: they would be all of it. They wait for others, as long as others can come."""
        late = all(r.lease.base_version != rnd.base_version for r in rnd.accepted)
        return late and rnd.kind == "local" and self._may_leave(run, entry) and bool(self._hub.muster.members(run))

    def _leave_late(self, run: Run, entry: Entry, rnd: Round) -> None:
        """What is still out belongs to the next merge; what would be too old by then is leased again."""
        following = rnd.base_version + 1
        for record in [r for r in rnd.records if r.at(LeaseState.LEASED) and following - r.lease.base_version > MAX_STALENESS]:
            said = f"{record.member.worker_id} is more than {MAX_STALENESS} merges behind; its iterations are leased again."
            run.say("expired", self._hub.clock.now(), said)
            self._hub.taking.withdraw(run, entry, record, Trigger.EXPIRE, f"more than {MAX_STALENESS} merges behind")
        late = [r for r in rnd.records if r.state in OUT]
        if late:
            rnd.records = [r for r in rnd.records if r.state not in OUT]
            entry.rounds.append(Round("local", following, late))
