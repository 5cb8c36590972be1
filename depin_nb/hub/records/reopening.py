"""Runs whose hub was killed: kept open for their notebooks, and made again from the journal when these come back.

A run waits REOPEN_S for its kernel. Then it is ended as interrupted and settled, as one that can't be reopened is at once.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import DPN, Amount
from depin_nb.core.errors import DepinError, HubError, NoSuchRun
from depin_nb.core.lease import EntrySpec
from depin_nb.core.state import State
from depin_nb.hub.leases.entry import Entry, Result
from depin_nb.hub.leases.members import Tally
from depin_nb.hub.leases.shares import Claim, claim_of
from depin_nb.hub.records import lent, resumable
from depin_nb.hub.run import Run
from depin_nb.ledger import store
from depin_nb.metering.budget import Budget
from depin_nb.metering.meter import Meter

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator, Settlement
    from depin_nb.training.merge import OuterState

log = logging.getLogger(__name__)

REOPEN_S = 60.0  # starting a hub takes a kernel a few seconds; one that comes later resumes as a new run
WAITING = "waiting"  # for its notebook
EVENT = "reopened"


class Reopening:
    """The part of the coordinator that takes over what a killed hub left running."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    # --- at the hub's start: in the books' thread -------------------------------------------------------

    def able(self, run_id: str) -> bool:
        """Whether the journal has what going on needs: logs for what its kernel wasn't told, and the newest version."""
        hub, conn = self._hub, self._hub.journal.connection
        if not resumable.is_kept(conn, run_id):
            return False
        version = resumable.version_of(conn, run_id)
        vault = store.run(conn, run_id)
        return (version < 0 or hub.states.size(run_id, version) > 0) and (vault is None or vault.state in (store.OPENING, store.OPEN))

    def waiting(self, run_id: str) -> Run | None:
        """The run as it waits for its notebook; None where the journal doesn't give it."""
        try:
            run = self.rebuilt(run_id)
        except (DepinError, ValueError, KeyError, TypeError) as error:
            log.warning("%s can't be reopened: %s", run_id, error)
            return None
        run.state, run.lost, run.waiting_s = WAITING, True, run.seen_s
        run.notices.append("Its hub was killed and is back: the run waits for its notebook.")
        return run

    def rebuilt(self, run_id: str) -> Run:
        """A run from its rows, without weights and without its open entry."""
        hub, conn = self._hub, self._hub.journal.connection
        with hub.journal.reading():
            row, asked = hub.journal.run(run_id), resumable.asked(conn, run_id)
            continues = resumable.links(conn).get(run_id)
            past = hub.resuming.past_of(continues) if continues is not None else None
            cap, cap_dpn = self._cap(conn, run_id, row.budget)
            _, spent = resumable.money_of(conn, run_id)
            now, now_s = hub.clock.now(), hub.clock.monotonic()
            run = Run(
                run_id=run_id,
                name=row.name,
                where=row.where,
                strategy=row.strategy,
                backend=row.backend,
                source=resumable.source_of(conn, run_id),
                cap=cap,
                budget=Budget(cap_dpn, Amount(spent, DPN), Amount(0, DPN), run_id),
                meter=Meter(hub.prices),
                started_at=row.started_at,
                started_s=now_s - max(0.0, now - row.started_at),
                seen_s=now_s,
                simulated=row.backend == "depin",
                passes=asked.get("passes"),
                most_workers=asked.get("workers"),
                keeps=resumable.is_kept(conn, run_id),
                past=past,
                continues=continues,
                version=row.version,
                merges=len(row.merges),
                iterations=sum(m.iterations for m in row.merges) + (past.iterations if past is not None else 0),
                samples=sum(m.samples for m in row.merges) + (past.samples if past is not None else 0),
                kept_bytes=resumable.kept_bytes(conn, run_id),
                ticket=str(asked.get("ticket", "")),
                claim=self._claim(conn, run_id, asked),
            )
            run.warned = run.budget.warning
            run.meter.start(0.0)
            for x, y in row.losses:
                run.curve.add(x, y)
            self._tallies(conn, run)
            self._stand(conn, run)
            run.asked = self._asked(conn, run_id)
            (run.life,) = conn.execute("SELECT COUNT(*) FROM events WHERE run_id=? AND kind=?", (run_id, EVENT)).fetchone()
        return run

    def _cap(self, conn: sqlite3.Connection, run_id: str, told: dict[str, Any] | None) -> tuple[Amount | None, Amount | None]:
        """(the budget as the user gave it, in DPN): what the vault holds is what may be spent, to the base unit."""
        cap = None if told is None else Amount.from_dict(told)
        vault = store.run(conn, run_id)
        if vault is not None and vault.capped:
            held = Amount(vault.budget_units, DPN)
            return cap or held, held
        return cap, None if cap is None else self._hub.prices.to_dpn(cap)

    @staticmethod
    def _claim(conn: sqlite3.Connection, run_id: str, asked: dict[str, Any]) -> Claim:
        """Its share, as it was changed last."""
        row = conn.execute("SELECT data FROM events WHERE run_id=? AND kind='share' ORDER BY id DESC LIMIT 1", (run_id,)).fetchone()
        said = dict(asked.get("share") or {}) if row is None else json.loads(row[0])
        return claim_of({name: said[name] for name in ("user", "weight", "priority") if name in said})

    @staticmethod
    def _asked(conn: sqlite3.Connection, run_id: str) -> str:
        """The state in which its user put it, "" where that is running."""
        row = conn.execute(
            "SELECT kind FROM events WHERE run_id=? AND kind IN ('paused', 'resumed', 'stop') ORDER BY id DESC LIMIT 1", (run_id,)
        ).fetchone()
        return {"paused": "paused", "stop": "stopping"}.get(row[0], "") if row is not None else ""

    def _tallies(self, conn: sqlite3.Connection, run: Run) -> None:
        profiles = lent.profiles(conn, run.run_id)
        default = "local" if run.backend == "local" else "phone"
        for receipt in store.receipts(conn, run.run_id):
            profile = profiles.get(receipt.worker_id, default)
            tally = run.tallies.get(receipt.worker_id)
            if tally is None:
                price = self._hub.prices.price(profile).text()
                tally = run.tallies[receipt.worker_id] = Tally(receipt.worker_id, profile, profile != "local", receipt.wallet, price)
                tally.gone = "left"  # until it is here again
            tally.iterations += receipt.count
            tally.samples += receipt.samples
            tally.leases += 1
            tally.earned += receipt.units_dpn
            run.meter.charge(receipt.worker_id, Amount(receipt.units_dpn, DPN), receipt.count, 0.0)

    def _stand(self, conn: sqlite3.Connection, run: Run) -> None:
        """Where its entries stand, and what its workers may bring back."""
        entries = conn.execute(
            "SELECT e.entry, e.spec, e.closed_at, s.number FROM entries e JOIN sites s ON s.run_id=e.run_id AND s.entry=e.entry"
            " WHERE e.run_id=? ORDER BY e.entry",
            (run.run_id,),
        ).fetchall()
        ends = conn.execute("SELECT end_version FROM sites WHERE run_id=? AND end_version IS NOT NULL", (run.run_id,))
        run.ends = {int(version) for (version,) in ends} if run.keeps else set()
        if not entries:
            return
        entry, text, closed_at, number = entries[-1]
        spec = EntrySpec.from_dict(json.loads(text))
        (here,) = conn.execute("SELECT COALESCE(SUM(iterations), 0) FROM merges WHERE run_id=? AND entry=?", (run.run_id, entry)).fetchone()
        run.entries, run.number = entry, number
        run.done_before = run.iterations - here
        if run.past is not None and number == run.past.last:
            run.done_before = run.past.before(number) + spec.first
        if closed_at is None:
            ended = lent.ended(conn, run.run_id, entry)
            run.away = {row.lease_id: row for row in lent.of_entry(conn, run.run_id, entry) if row.lease_id not in ended}
        elif spec.total is not None:
            run.total = run.done_before + spec.total - spec.first

    def sum_up(self, run_id: str, settled: Settlement | None) -> None:
        """The last status of a run that ended without one, as far as its rows tell."""
        hub = self._hub
        row = hub.journal.run(run_id)
        if row.summary is not None:
            return
        try:
            run = self.rebuilt(run_id)
        except (DepinError, ValueError, KeyError, TypeError) as error:
            log.warning("%s can't be summed up: %s", run_id, error)
            return
        run.state, run.settled = row.state, True
        run.ended_s = run.started_s + max(0.0, (row.ended_at or row.started_at) - row.started_at)
        run.signatures = tuple(settled.signatures) if settled is not None else ()
        for tally in run.tallies.values():
            tally.paid = tally.earned if settled is not None and tally.wallet in settled.paid else 0
        if row.message:
            run.notices.append(row.message)
        with hub.journal.transaction():
            hub.journal.set_summary(run_id, hub.status(run).to_dict())

    def tidy(self, run: Run) -> None:
        """Files of a merge that was under way when the hub was killed."""
        hub = self._hub
        bases = {row.base_version for row in run.away.values()}
        keep = {v for v in {*range(max(0, run.version - 2), run.version + 1), *run.ends, *bases} if v <= run.version}
        hub.states.prune(run.run_id, keep)
        hub.replays.keep(run.run_id, resumable.logs_of(hub.journal.connection, run.run_id))

    # --- when its notebook is back --------------------------------------------------------------------------

    async def reopen(self, run_id: str, after: int) -> dict[str, Any]:
        """The run goes on where its journal stands, paused or being stopped as it was. `after`: the iteration of its open entry up to which
        the kernel has results. Harmless for a run that is open.

        Raises NoSuchRun or HubError for one that has ended, JournalError when its files can't be read.
        """
        run = self._hub.runs.get(run_id)
        if run is None:
            raise self._over(run_id)
        async with run.finishing:
            if run.ended:
                raise self._over(run_id)
            if run.waiting_s is not None:
                await self._open(run, after)
        entry = run.entry.entry_id if run.entry is not None else 0
        return {"entry": entry, "entries": run.entries, "version": run.version, "status": self._hub.status(run).to_dict()}

    def _over(self, run_id: str) -> DepinError:
        row = self._hub.journal.run(run_id)
        if row.ended_at is None:
            return NoSuchRun(f"{run_id!r} is not an active run", run_id=run_id)
        return HubError(
            f"{run_id} has ended: {row.state}{f' ({row.message})' if row.message else ''}",
            hint=f"`%%depin train --resume {run_id}` on top of the same cell goes on from its last merge.",
        )

    async def _open(self, run: Run, after: int) -> None:
        hub = self._hub
        cap = run.budget.cap
        await hub.in_books(hub.ledger.open_run, run.run_id, None if cap is None else cap.units)  # killed before its vault was open
        weights: State | None = None
        outer: OuterState | None = None
        entry: Entry | None = None
        if run.version >= 0:
            weights = await hub.in_executor(hub.states.open, run.run_id, run.version)
            outer = await hub.in_executor(self._outer, run)
            entry = await hub.in_books(self._entry, run, after)
            if entry is not None:
                await hub.resuming.restore(run, entry, run.number)
                entry.known(i for i in entry.merged if i < after)
        life = run.life + 1
        if entry is not None:
            entry.life = life
        run.say(EVENT, hub.clock.now(), "Its hub was killed and is back; the run goes on.")

        def write() -> None:
            resumable.set_lost(hub.journal.connection, run.run_id, None)

        await hub.flush(run, write)
        now_s = hub.clock.monotonic()
        run.weights, run.outer, run.entry, run.life = weights, outer, entry, life
        run.waiting_s, run.lost, run.seen_s, run.reopened_s, run.without_workers_s = None, False, now_s, now_s, None
        run.state = run.asked or ("running" if run.entries else "planning")
        if entry is not None and run.asked == "stopping":
            entry.halt = "stopped"
        hub.returning.reopened(run)
        hub.changed.notify()

    def _outer(self, run: Run) -> OuterState | None:
        """The velocity beside the newest merge: an entry that began since made a version without."""
        for version in range(run.version, max(-1, run.version - 3), -1):
            if (found := self._hub.states.read_outer(run.run_id, version)) is not None:
                return found
        return None

    def _entry(self, run: Run, after: int) -> Entry | None:
        """The entry that was open, in the books' thread."""
        hub, conn = self._hub, self._hub.journal.connection
        with hub.journal.reading():
            row = conn.execute(
                "SELECT spec, base_version, closed_at FROM entries WHERE run_id=? AND entry=?", (run.run_id, run.entries)
            ).fetchone()
            if row is None or row[2] is not None:
                return None
            entry = Entry(run.run_id, run.entries, EntrySpec.from_dict(json.loads(row[0])), row[1])
            entry.program_bytes = sum(hub.blobs.size(d) for d in (entry.spec.program, *entry.spec.blobs))
            given = lent.of_entry(conn, run.run_id, run.entries)
            entry.leases = max((row.number for row in given), default=0)
            if entry.held == "solo" and given:
                entry.solo_worker = run.solo_worker = given[-1].worker_id
                entry.solo_process = given[-1].process
            entry.ended_before = frozenset(lent.ended(conn, run.run_id, run.entries))
            kept = conn.execute("SELECT version, spans, file FROM replays WHERE run_id=? AND entry=?", (run.run_id, run.entries)).fetchall()
            results, left_at = [], []
            for version, spans, file in kept:
                told = json.loads(spans)
                left_at += [first + count - 1 for first, count, left in told if left]
                if any(first + count > after for first, count, _ in told):
                    results += [
                        Result(r["first"], tuple(r["logs"]), r["left"], r["exit"], version)
                        for r in hub.replays.read(file)
                        if r["first"] + len(r["logs"]) > after
                    ]
            merged = {index for index, _ in hub.journal.merged_units(run.run_id, run.entries)}
        entry.add_merged(merged, results)
        entry.known(merged)
        if left_at:
            entry.cut_off(min(left_at))
        return entry
