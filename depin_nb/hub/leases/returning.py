"""Leases that a killed hub lent: which worker brings which one back, and what becomes of the others. Synchronous, as giving.py is."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from depin_nb.core.errors import DepinError
from depin_nb.core.lease import Lease
from depin_nb.hub.leases.entry import Entry, LeaseRecord, Round
from depin_nb.hub.leases.members import Member
from depin_nb.hub.leases.rounds import DEADLINE_FACTOR
from depin_nb.hub.records import lent
from depin_nb.hub.records.journal import LeaseRow
from depin_nb.hub.records.lent import Lent
from depin_nb.hub.records.rows import spans_of
from depin_nb.hub.run import Run
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

log = logging.getLogger(__name__)

RETURN_S = 10.0  # from the reopening on: workers dial every second or two


class Returning:
    """The part of the coordinator that writes down what is lent, and sorts out after a kill what comes back."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self._writing = False

    # --- writing down -----------------------------------------------------------------------------------

    def note(self, run: Run, entry: Entry, record: LeaseRecord) -> None:
        """A lease was given. A gang's isn't brought back: its ranks need each other."""
        lease, member = record.lease, record.member
        if lease.gang or entry.spec.limit_s:
            return
        units = spans_of([u.index for u in lease.units])
        run.lent.append(
            Lent(
                lease.lease_id, entry.entry_id, member.worker_id, member.wallet, member.profile, member.process, lease.base_version,
                record.number, units, lease.final, lease.base_iteration,
            )
        )  # fmt: skip
        if not self._writing:
            self._writing = True
            self._hub.spawn(self._write())

    async def _write(self) -> None:
        """One transaction with all that was lent since the last one."""
        hub = self._hub
        try:
            while rows := {run.run_id: run.take_lent() for run in hub.runs.values() if run.lent}:

                def write(rows: dict[str, list[Lent]] = rows) -> None:
                    with hub.journal.transaction() as connection:
                        for run_id, given in rows.items():
                            lent.add(connection, run_id, given)

                await hub.in_books(write)
        except DepinError as error:  # then they are leased again, should this hub be killed
            log.warning("what is lent could not be written down: %s", error.message)
        finally:
            self._writing = False

    # --- bringing back ------------------------------------------------------------------------------------

    def joined(self, member: Member, held: Collection[str]) -> list[str]:
        """A worker is here with these leases in its hands. Answers those that it shall keep."""
        member.brought = frozenset(held)
        for run in self._hub.runs.values():
            self.sort_out(run)
        return [lease_id for lease_id in held if lease_id in member.held or self.expected(member, lease_id)]

    def expected(self, member: Member, lease_id: str) -> bool:
        """Whether the lease may yet be this worker's again: its run waits for its notebook, or its units haven't come."""
        return any((row := run.away.get(lease_id)) is not None and _gave(row, member) for run in self._hub.runs.values())

    def reopened(self, run: Run) -> None:
        """The run goes on. Its entry's units come next."""
        if run.entry is not None:
            run.entry.away.update(index for row in run.away.values() for index in row.indices)
        else:
            run.away.clear()

    def sort_out(self, run: Run) -> None:
        """Gives back what can be; opens again what nobody has any more."""
        entry = run.entry
        if entry is None or run.waiting_s is not None or run.reopened_s is None:
            return
        if entry.held == "solo":
            self._solo(run, entry)
            return
        for row in list(run.away.values()):
            member, gone = self._holder(row)
            if gone or (member is not None and row.lease_id not in member.brought):
                self._give_up(run, entry, row, "its worker doesn't have it any more")
            elif member is not None and self._fits(run, entry, row) is False:
                self._give_up(run, entry, row, "it can't go on")
            elif member is not None and self._fits(run, entry, row):
                self._give_back(run, entry, row, member, entry.round or Round("local", run.version))

    def tick(self, now_s: float) -> None:
        for run in self._hub.runs.values():
            if run.reopened_s is None or run.entry is None:
                continue
            self.sort_out(run)
            if now_s - run.reopened_s > RETURN_S:
                if run.entry.solo_process:
                    self._solo_lost(run, run.entry)
                for row in list(run.away.values()):
                    self._give_up(run, run.entry, row, "nobody brought it back")
                run.reopened_s = None

    def _holder(self, row: Lent) -> tuple[Member | None, bool]:
        """(the worker that it was lent to, whether another process has that worker's place)."""
        named = [m for m in self._hub.members.values() if m.worker_id == row.worker_id and m.wallet == row.wallet]
        mine = next((m for m in named if m.process == row.process), None)
        return mine, mine is None and bool(named)

    def _fits(self, run: Run, entry: Entry, row: Lent) -> bool | None:
        """Whether its worker may have it again; None as long as the kernel hasn't sent its units."""
        if not entry.merged.isdisjoint(row.indices) or any(entry.queued([i]) for i in row.indices):
            return False
        rounds = entry.rounds
        if entry.held == "solo":
            base = run.version + sum(1 for r in rounds if not r.committed)
        else:
            base = run.version
            if any(r.merging for r in rounds):
                return False
        if row.base_version != base or (entry.exit_at is not None and row.indices[-1] > entry.exit_at):
            return False
        return True if entry.came_back(row.indices) else None

    def _give_back(self, run: Run, entry: Entry, row: Lent, member: Member, rnd: Round) -> bool:
        hub = self._hub
        cost = hub.lending.worst(entry, member, len(row.indices))
        if not hub.purses.allows(run, cost):
            self._give_up(run, entry, row, "the budget doesn't allow it")
            return False
        del run.away[row.lease_id]
        units = entry.take_back(row.indices)
        run.budget = hub.purses.reserve(run, cost)
        lease = Lease(row.lease_id, run.run_id, entry.entry_id, row.base_version, units, row.final, base_iteration=row.base_iteration)
        now, pace = hub.clock.monotonic(), hub.lending.pace(run, entry, member, len(units))
        allowed_s = max(pace.deadline_s(), DEADLINE_FACTOR * pace.expected_s)
        record = LeaseRecord(lease, member, row.number, cost, now, pace, allowed_s)
        record.go(Trigger.LEASE)
        rnd.records.append(record)
        if rnd not in entry.rounds:
            entry.rounds.append(rnd)
        run.tally(member, hub.prices)
        member.held[lease.lease_id] = run.run_id
        hub.taking.begin_next(member, now)
        return True

    def _give_up(self, run: Run, entry: Entry, row: Lent, why: str) -> None:
        run.away.pop(row.lease_id, None)
        still = {index for other in run.away.values() for index in other.indices}
        entry.open_again([i for i in row.indices if i not in still])
        run.backlog.append(
            LeaseRow(
                row.lease_id, row.entry, row.worker_id, row.base_version, None, LeaseState.OPEN.value, row.units, 0, self._hub.clock.now(),
                reason=f"{Trigger.LOSE.value}: its hub was killed, {why}",
            )
        )  # fmt: skip

    # --- one worker: its living objects go on, or the notebook ships the loop again -----------------------------

    def _solo_stands(self, run: Run, entry: Entry) -> bool:
        """Whether the entry's worker is here, with nothing in its hands that this hub doesn't know."""
        member = next((m for m in self._hub.members.values() if m.worker_id == entry.solo_worker), None)
        return member is not None and member.process == entry.solo_process and not self._unknown(run, entry, member)

    def _unknown(self, run: Run, entry: Entry, member: Member) -> bool:
        mine = f"{run.run_id}-{entry.entry_id}-"
        return any(
            i.startswith(mine) and i not in run.away and i not in member.held and i not in entry.ended_before for i in member.brought
        )

    def _solo(self, run: Run, entry: Entry) -> None:
        for row in sorted(run.away.values(), key=lambda row: row.number):
            member, gone = self._holder(row)
            if member is None and not gone:
                return
            if member is None or row.lease_id not in member.brought or self._unknown(run, entry, member):
                self._solo_lost(run, entry)
                return
            fits = self._fits(run, entry, row)
            if fits is None:
                return
            if not fits or not self._give_back(run, entry, row, member, Round("solo", row.base_version)):
                self._solo_lost(run, entry)
                return
        if entry.solo_process and any(m.worker_id == entry.solo_worker for m in self._hub.members.values()):
            if self._solo_stands(run, entry):
                entry.solo_process = ""  # from here on as ever
            else:
                self._solo_lost(run, entry)

    def _solo_lost(self, run: Run, entry: Entry) -> None:
        for row in list(run.away.values()):
            self._give_up(run, entry, row, "its worker isn't as it was")
        entry.solo_process = ""
        if not entry.merged and not entry.rounds and not any(m.worker_id == entry.solo_worker for m in self._hub.members.values()):
            entry.solo_worker = ""  # nothing was merged: anybody may begin
        elif not entry.halt:
            self._hub.taking.lose_solo(run, entry)
            entry.changed.notify()


def _gave(row: Lent, member: Member) -> bool:
    return (row.worker_id, row.wallet, row.process) == (member.worker_id, member.wallet, member.process)
