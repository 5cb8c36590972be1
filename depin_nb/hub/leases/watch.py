"""What passes by itself: deadlines, and runs without any worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depin_nb.core.errors import HubError, OutOfMemory
from depin_nb.hub.answers import error_of
from depin_nb.hub.leases.entry import Entry
from depin_nb.hub.leases.members import MEMORY_MARGIN, Member
from depin_nb.hub.run import Run
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

PAUSED_S = 1.5  # between two ticks: the hub itself was held up
NO_WORKERS_AFTER_S = 15.0  # workers that are starting, or a cluster that replaces one, get so long


def _took_too_long(limit_s: float) -> HubError:
    return HubError(
        f"the cell did not end within the {limit_s:g} s that it was given", hint="Give it more: `%%depin train --single --limit 3600`."
    )


def _too_large(needed_bytes: int, members: list[Member]) -> OutOfMemory:
    have = ", ".join(f"{m.worker_id} {m.memory_bytes / 1e9:.2g} GB" for m in sorted(members, key=lambda m: -m.memory_bytes)[:4])
    return OutOfMemory(
        f"this loop needs {MEMORY_MARGIN * needed_bytes / 1e9:.2g} GB on a worker, and none has it: {have}",
        needed=needed_bytes,
        workers=[m.worker_id for m in members],
    )


class Watch:
    """The part of the coordinator that looks at the clock."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self._ticked_s = hub.clock.monotonic()

    def tick(self) -> None:
        """What passes by itself: deadlines, and runs without any worker."""
        now = self._hub.clock.monotonic()
        if now - self._ticked_s > PAUSED_S:  # this process stood still (or was asleep): nobody could be heard
            for member in self._hub.members.values():
                member.seen_s = now
        self._ticked_s = now
        for run in list(self._hub.runs.values()):
            entry = run.entry
            if entry is None or run.ended:
                continue
            for record in [r for rnd in entry.rounds for r in rnd.records]:
                if record.state is LeaseState.LEASED and now > record.deadline_s:
                    if entry.spec.limit_s and not entry.halt:
                        entry.halt, entry.error = "failed", error_of(_took_too_long(entry.spec.limit_s))
                    run.say("expired", self._hub.clock.now(), f"{record.member.worker_id} was too late; its iterations are leased again.")
                    record.member.overdue(run.run_id, entry.spec.seconds_per_iteration)
                    self._hub.taking.withdraw(run, entry, record, Trigger.EXPIRE, "past its deadline")
                    entry.expired[record.lease.lease_id] = record
            self._check_silence(run, entry, now)
            self.check_workers(run, entry, now)
            self._hub.commits.close_rounds(run, entry)
        self._hub.giving.dispatch()

    def _check_silence(self, run: Run, entry: Entry, now: float) -> None:
        """What only one worker can do, and what a gang does together, goes on without a silent one as soon as another one can have it.

        Not a whole cell: it may have done things that can't be done twice.
        """
        if entry.held == "local" or entry.halt or not run.leasing or entry.spec.limit_s:
            return
        records = [r for rnd in entry.rounds for r in rnd.records if r.at(LeaseState.LEASED) and r.begun_s is not None]
        silent = next((r for r in records if r.member.silent(now)), None)
        if silent is None:
            return
        member = silent.member
        others = [m for m in self._hub.muster.members(run) if m is not member]
        if not any(m.free and m.parked is not None for m in others) and (
            entry.held == "solo" or all(m.free or m.silent(now) for m in others)
        ):
            return
        self._hub.taking.withdraw(run, entry, silent, Trigger.LOSE, "its worker is silent")
        member.given_up()
        if entry.held == "gang":
            run.say("silent", self._hub.clock.now(), f"{member.worker_id} is silent; the others go on without it.", worker=member.worker_id)

    def check_workers(self, run: Run, entry: Entry, now: float) -> None:
        if entry.halt or self._hub.muster.members(run):
            run.without_workers_s = None
            return
        barred = [m for m in self._hub.members.values() if m.barred(run.run_id)]
        others = set(run.tallies).difference(m.worker_id for m in barred)  # that were here: they may come back
        if run.without_workers_s is None:
            run.without_workers_s = now
        waited = now - run.without_workers_s > NO_WORKERS_AFTER_S and not entry.busy
        needed, here = entry.spec.memory_bytes, list(self._hub.members.values())
        if here and not barred and (waited or not others) and not any(m.fits(needed) for m in here):
            entry.halt, entry.error = "failed", error_of(_too_large(needed, here))
        elif barred and (waited or not others):
            entry.halt = "failed"
            entry.error = error_of(self._hub.rejected_error(run, barred))
        elif waited:
            entry.halt = "no-workers"
        if entry.halt:
            entry.changed.notify()
