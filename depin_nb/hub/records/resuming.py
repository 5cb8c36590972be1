"""Keeps what a killed kernel's run needs to go on, and lets a new run continue it. The part of the coordinator that `--resume` asks.

Kept of a run until it has finished normally: each merge's logs, the state at each loop entry's end, the newest state. Afterwards, and
of all but the newest unfinished runs, only metrics, receipts and the newest state stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import DPN, Amount
from depin_nb.core.errors import BudgetExhausted, HubError, ResumeError, UsageError
from depin_nb.hub.leases.entry import MAX_ANSWER_BYTES, Entry, Result
from depin_nb.hub.records import resumable
from depin_nb.hub.records.journal import RunRow
from depin_nb.hub.records.resumable import Chapter
from depin_nb.hub.run import Run

if TYPE_CHECKING:
    from depin_nb.core.lease import EntrySpec
    from depin_nb.hub.coordinator import Coordinator

MAX_RUN_BYTES = 8 << 30  # kept of one run for going on; a run that makes more can't be resumed any more
MAX_KEPT_BYTES = 16 << 30  # kept of all unfinished runs together; the newest one is kept in any case
KEPT_RUNS = 5  # unfinished runs that can still be resumed
MAX_GENERATORS_BYTES = 1 << 20
MAX_TEXT = 500


@dataclass(frozen=True)
class Past:
    """What a run continues. `chapters` by the loop entry's number; `last`: the newest of them, 0 when there is none."""

    row: RunRow
    chapters: dict[int, Chapter]
    asked: dict[str, Any]
    left: Amount | None  # of the budget, in the currency in which the user gave it; None: no budget was set
    left_dpn: Amount | None
    iterations: int
    samples: int

    @property
    def last(self) -> int:
        return max(self.chapters, default=0)

    def before(self, number: int) -> int:
        """Iterations merged in earlier loop entries."""
        return sum(c.merged for c in self.chapters.values() if c.number < number)

    def outline(self) -> list[dict[str, Any]]:
        """The chapters as a kernel needs them; logs and states come one by one."""
        return [
            {"number": c.number, "header": c.header, "where": c.place, "spec": c.spec, "generators": c.generators,
             "merged": c.contiguous, "complete": c.complete}
            for c in self.chapters.values()
        ]  # fmt: skip


class Resuming:
    """`lock`: held from finding the run that is continued until the new one is in the journal."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self.lock = asyncio.Lock()

    # --- whether the kernel is there --------------------------------------------------------------------

    def kernel_lost(self, run: Run) -> None:
        """Its connection is closed: said in the journal, so that a new kernel can offer to go on."""
        if not run.lost and not run.ended:
            run.lost = True
            self._tell(run, self._hub.clock.now())

    def kernel_back(self, run: Run) -> None:
        if run.lost:
            run.lost = False
            self._tell(run, None)

    def _tell(self, run: Run, at: float | None) -> None:
        journal = self._hub.journal

        def write() -> None:
            with journal.transaction() as connection:
                resumable.set_lost(connection, run.run_id, at)

        self._hub.spawn(self._hub.in_books(write))

    # --- going on ---------------------------------------------------------------------------------------

    async def find(self, wanted: str, source: str) -> Past:
        """The run to continue: `wanted`, or the newest one of that cell when it is "".

        A run whose kernel is gone is ended first. Raises NoSuchRun, or ResumeError with what forbids it.
        """
        hub = self._hub
        digest = resumable.digest_of(source)
        for active in list(hub.runs.values()):
            if active.run_id != wanted and (wanted or resumable.digest_of(active.source) != digest):
                continue
            if not hub.connected(active.run_id):
                await hub.finish(active, "interrupted", "its kernel is gone", cut=True)
            elif wanted:
                raise ResumeError(
                    f"{wanted} is still going on: the notebook that runs it is connected",
                    hint=f"`%depin stop {wanted}` ends it; then it can be resumed.",
                    run_id=wanted,
                )
        run_id = wanted or await hub.in_books(self._newest, source)

        def past() -> Past:
            with hub.journal.reading():
                return self._past(run_id, source)

        return await hub.in_books(past)

    def _newest(self, source: str) -> str:
        found = resumable.heads(self._hub.journal.connection, source)
        if not found:
            raise ResumeError(
                "no run of this cell can be resumed", hint="`%depin runs` shows which runs can. Name one, above the cell that it ran."
            )
        return found[0]

    def _past(self, run_id: str, source: str) -> Past:
        hub = self._hub
        row, conn = hub.journal.run(run_id), hub.journal.connection
        if row.state == "finished":
            raise ResumeError(f"{run_id} has finished: nothing is left to do", hint="Run the cell without --resume.", run_id=run_id)
        for after, state, ended in resumable.successors(conn, run_id):
            how = "has been continued" if ended else "is being continued"
            hint = "Run the cell without --resume." if state == "finished" else f"`%%depin train --resume {after}`"
            raise ResumeError(f"{run_id} {how} as {after} ({state})", hint=hint, run_id=run_id)
        past = self.past_of(run_id)
        if not past.iterations:
            raise ResumeError(f"{run_id} has merged nothing to go on with", hint="Run the cell without --resume.", run_id=run_id)
        if not resumable.is_kept(conn, run_id):
            raise ResumeError(
                f"{run_id} can't be resumed: its logs and snapshots are not kept any more",
                hint="Its weights are: `depin_nb.attach(run).state_dict()`.",
                run_id=run_id,
            )
        if differs := resumable.difference(resumable.source_of(conn, run_id), source):
            raise ResumeError(f"this isn't the cell that {run_id} ran: {differs}", hint="Resume it on top of the same cell.", run_id=run_id)
        return past

    def past_of(self, run_id: str) -> Past:
        """What the run and those that it continues did. In the books' thread."""
        row, conn = self._hub.journal.run(run_id), self._hub.journal.connection
        iterations, samples = resumable.work_of(conn, resumable.chain(conn, run_id))
        left, left_dpn = self._left(conn, run_id)
        chapters = {c.number: c for c in resumable.chapters(conn, run_id)}
        return Past(row, chapters, resumable.asked(conn, run_id), left, left_dpn, iterations, samples)

    def _left(self, conn: Any, run_id: str) -> tuple[Amount | None, Amount | None]:
        cap, spent = resumable.money_of(conn, run_id)
        if cap is None:
            return None, None
        budget, used, prices = Amount.from_dict(cap), Amount(spent, DPN), self._hub.prices
        in_currency = used if budget.currency.code == DPN.code else prices.to_usd(used)
        left_dpn = Amount(max(0, prices.to_dpn(budget).units - spent), DPN)
        return Amount(max(0, budget.units - in_currency.units), budget.currency), left_dpn

    @staticmethod
    def budget_of(past: Past) -> tuple[Amount | None, Amount | None]:
        """What the continued run left of its budget, (as given, in DPN). Raises BudgetExhausted when that is nothing."""
        if past.left_dpn is not None and not past.left_dpn:
            raise BudgetExhausted(
                f"{past.row.run_id} has spent its budget",
                hint="Give more with --budget: it counts from here on.",
                run_id=past.row.run_id,
            )
        return past.left, past.left_dpn

    async def take_over(self, run: Run, past: Past) -> None:
        """Curve, counts and the outer optimizer's velocity go on from what was merged."""
        run.past, run.continues = past, past.row.run_id
        run.iterations, run.samples = past.iterations, past.samples
        run.done_before = past.iterations
        for x, y in past.row.losses:
            run.curve.add(x, y)
        spec = past.chapters[past.last].spec if past.last else {}
        if spec.get("total") is not None:
            run.total = past.before(past.last) + int(spec["total"])
        if past.last:
            run.outer = await self._hub.in_executor(self._hub.states.read_outer, *past.chapters[past.last].end)
        run.say("continues", self._hub.clock.now(), f"It goes on from {past.row.run_id}.", run=past.row.run_id)

    # --- what a kernel replays -----------------------------------------------------------------------------

    @staticmethod
    def _chapter(run: Run, number: int) -> Chapter:
        chapter = run.past.chapters.get(number) if run.past is not None else None
        if chapter is None:
            raise HubError(f"{run.run_id} continues no run with a loop entry {number!r}")
        return chapter

    async def logs(self, run: Run, number: int, after: int) -> list[dict[str, Any]]:
        """Merged results of a loop entry from iteration `after` on, gapless, in loop order, as many as fit one answer."""
        answer: list[dict[str, Any]] = []
        chapter, size, at = self._chapter(run, number), 0, after
        for span in chapter.spans:
            if span.first != at or size > MAX_ANSWER_BYTES:
                if span.first > at or answer:
                    break
                continue
            result = await self._hub.in_executor(self._read, span.file, span.first)
            size += sum(map(len, result["logs"])) + len(result["left"])
            answer.append(result)
            at += span.count
        return answer

    def _read(self, file: str, first: int) -> dict[str, Any]:
        return next(part for part in self._hub.replays.read(file) if part["first"] == first)

    async def end_state(self, run: Run, number: int) -> bytes:
        """The state at the end of a loop entry, or the newest one of the entry that was under way."""
        part, version = self._chapter(run, number).end
        return await self._hub.in_executor(self._hub.states.read, part, version)

    # --- an entry -------------------------------------------------------------------------------------------

    def number_of(self, run: Run, spec: EntrySpec, about: dict[str, Any] | None) -> dict[str, Any]:
        """What is journalled of where an entry stands, checked: number, header, place, generators."""
        told = dict(about or {})
        number = told.get("number", run.number + (spec.first == 0))
        generators = told.get("generators") or b""
        if type(number) is not int or number < max(1, run.number) or type(generators) is not bytes:
            raise UsageError("an entry is opened with the number of its loop entry")
        if len(generators) > MAX_GENERATORS_BYTES:
            generators = b""
        past = run.past
        if past is not None and (number < past.last or (number == past.last and past.chapters[number].complete)):
            raise HubError(f"loop entry {number} was done by {past.row.run_id} already")
        if past is not None and number == past.last and run.number < number and spec.first != past.chapters[number].contiguous:
            raise HubError(f"loop entry {number} goes on at iteration {past.chapters[number].contiguous}, not {spec.first}")
        place = {"header": str(told.get("header", ""))[:MAX_TEXT], "place": str(told.get("where", ""))[:MAX_TEXT]}
        return {"number": number, **place, "generators": generators}

    def done_before(self, run: Run, number: int, spec: EntrySpec) -> int:
        """Iterations merged before this entry's first, over all loop entries."""
        if run.past is not None and number == run.past.last:
            return run.past.before(number) + spec.first
        return run.iterations

    async def restore(self, run: Run, entry: Entry, number: int) -> None:
        """Iterations behind a gap that the continued run merged already: they are not leased again, only told."""
        if run.past is None or number != run.past.last:
            return
        for span in run.past.chapters[number].spans:
            if span.first >= entry.spec.first:
                part = await self._hub.in_executor(self._read, span.file, span.first)
                entry.restore(Result(span.first, tuple(part["logs"]), part["left"], part["exit"], entry.base_version))

    # --- how much is kept -------------------------------------------------------------------------------------

    async def keep(self, run: Run, nbytes: int) -> None:
        """Counts what is kept; past MAX_RUN_BYTES the run goes on but can't be resumed any more."""
        run.kept_bytes += nbytes
        if run.keeps and run.kept_bytes > MAX_RUN_BYTES:
            run.keeps = False
            run.ends.clear()
            run.say("not-kept", self._hub.clock.now(), f"More than {MAX_RUN_BYTES >> 30} GiB would be kept: it can't be resumed any more.")
            await self._hub.in_books(self._drop, [run.run_id], False)

    def _drop(self, runs: Collection[str], states: bool = True) -> None:
        journal = self._hub.journal
        with journal.transaction() as connection:
            for run_id in runs:
                resumable.drop(connection, run_id)
        for run_id in runs:
            self._hub.replays.drop(run_id)
            if states:
                self._hub.states.prune(run_id, {resumable.version_of(journal.connection, run_id)})

    def retire(self, run: Run | None = None) -> None:
        """After a run's end, and at the hub's start: what can't be needed for going on goes. In the books' thread."""
        conn = self._hub.journal.connection
        if run is not None and (run.state == "finished" or (run.continues and not run.entries)):
            self._drop(resumable.chain(conn, run.run_id) if run.state == "finished" else [run.run_id])
        wanted: set[str] = set()
        for active in self._hub.runs:
            wanted.update(resumable.chain(conn, active))
        size = 0
        for number, head in enumerate(resumable.heads(conn)):
            parts = resumable.chain(conn, head)
            size += sum(resumable.kept_bytes(conn, part) + self._hub.states.total(part) for part in parts)
            if number == 0 or (number < KEPT_RUNS and size <= MAX_KEPT_BYTES):
                wanted.update(parts)
        self._drop([run_id for run_id in resumable.kept(conn) if run_id not in wanted and run_id not in self._hub.runs])
        if run is None:
            self._tidy(wanted)

    def _tidy(self, wanted: Collection[str]) -> None:
        """At the hub's start no run goes on: files that the journal doesn't name were left by a kill, or are of versions gone by."""
        hub = self._hub
        conn = hub.journal.connection
        hub.replays.prune(wanted)
        for run_id in wanted:
            hub.replays.keep(run_id, resumable.logs_of(conn, run_id))
        for run_id in hub.states.runs():
            if run_id in hub.runs:
                hub.reopening.tidy(hub.runs[run_id])
            else:
                hub.states.prune(run_id, resumable.versions_of(conn, run_id))
