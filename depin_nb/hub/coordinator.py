"""The coordinator: holds runs and workers, and joins the parts that decide. No Dask and no sockets; one asyncio loop, two executors."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from depin_nb.core import errors
from depin_nb.core.amount import DPN, Amount
from depin_nb.core.errors import CodecError, DepinError, HubError, MoneyError, NoSuchRun
from depin_nb.core.status import ENDED, Device, Status
from depin_nb.hub.aggregation import Aggregation
from depin_nb.hub.kernel_ops import KernelOps
from depin_nb.hub.leases.closing import Closing
from depin_nb.hub.leases.entry import Entry
from depin_nb.hub.leases.giving import Giving
from depin_nb.hub.leases.lending import Lending
from depin_nb.hub.leases.members import Member, Members
from depin_nb.hub.leases.muster import Muster
from depin_nb.hub.leases.purses import Purses
from depin_nb.hub.leases.returning import Returning
from depin_nb.hub.leases.taking import Taking
from depin_nb.hub.leases.watch import Watch
from depin_nb.hub.records import lent, resumable
from depin_nb.hub.records.blobs import BlobStore
from depin_nb.hub.records.journal import Journal
from depin_nb.hub.records.reopening import REOPEN_S, Reopening
from depin_nb.hub.records.replays import ReplayFiles
from depin_nb.hub.records.resuming import Resuming
from depin_nb.hub.run import Run
from depin_nb.hub.shared_ops import SharedOps
from depin_nb.hub.snapshot import device_of, status_of
from depin_nb.hub.transfers import Transfers
from depin_nb.hub.trouble import explained
from depin_nb.hub.versions.checkpoint_files import CheckpointFiles
from depin_nb.hub.versions.checkpoints import Checkpoints
from depin_nb.hub.versions.committing import Commits
from depin_nb.hub.versions.spool import Spool
from depin_nb.hub.versions.states import StateFiles
from depin_nb.hub.wake import Signal
from depin_nb.hub.worker_ops import WorkerOps
from depin_nb.ledger.receipt import Receipt
from depin_nb.metering.price import PriceBook
from depin_nb.ports import Clock

log = logging.getLogger(__name__)

KERNEL_SILENT_S = 120.0
MAX_CHANGE_EXTRA_BYTES = 64 << 20
ENDED_KEPT = 20  # ended runs that displays still show without asking the journal
T = TypeVar("T")


class Settlement(Protocol):
    """What a settlement gives (ledger.settlement.SettlementResult)."""

    @property
    def signatures(self) -> tuple[str, ...]: ...
    @property
    def paid(self) -> Mapping[str, int]: ...  # wallet -> DPN base units


class Books(Protocol):
    """The ledger as the coordinator uses it (ledger.ledger.Ledger). All but `record` are called outside any journal transaction."""

    def open_run(self, run_id: str, budget_dpn_units: int | None) -> str: ...
    def raise_budget(self, run_id: str, budget_dpn_units: int) -> str | None: ...
    def record(self, conn: sqlite3.Connection, receipt: Receipt) -> Any: ...
    def settle(self, run_id: str) -> Settlement: ...


class Coordinator:
    """`kernel` and `workers` hold the operations of docs/protocol.md; `tick()` is to be called a few times a second.

    `executor`: threads for tensors and files. `books`: ONE thread, for journal and ledger. `home`: where blobs and states are kept.
    `user_budget`: the most that a user's active runs may spend together.
    """

    def __init__(
        self,
        *,
        home: Path,
        clock: Clock,
        journal: Journal,
        ledger: Books,
        prices: PriceBook,
        executor: Executor,
        books: Executor,
        user_budget: Amount | None = None,
    ) -> None:
        self.home, self.clock, self.journal, self.ledger, self.prices = home, clock, journal, ledger, prices
        self.executor, self.books = executor, books
        self.blobs = BlobStore(home / "blobs")
        self.states = StateFiles(home / "states")
        self.spool = Spool(home)
        self.replays = ReplayFiles(home / "replays")
        self.connected: Callable[[str], bool] = lambda run_id: True  # whether a run's kernel is; the plugin knows
        self.members = Members()
        self.runs: dict[str, Run] = {}  # active ones
        self.ended: dict[str, Run] = {}
        self.last_rejection: dict[str, CodecError] = {}
        self.changed = Signal()
        self.purses = Purses(self, user_budget)
        self.muster = Muster(self)
        self.lending = Lending(self)
        self.giving = Giving(self)
        self.taking = Taking(self)
        self.watch = Watch(self)
        self.closing = Closing(self)
        self.commits = Commits(self)
        self.returning = Returning(self)
        self.resuming = Resuming(self)
        self.reopening = Reopening(self)
        self.checkpoints = Checkpoints(self, CheckpointFiles(home / "runs"))
        self.transfers = Transfers(self)
        self.aggregation = Aggregation(self)
        self.kernel = KernelOps(self)
        self.shared = SharedOps(self)
        self.workers = WorkerOps(self)
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- helpers of the parts -------------------------------------------------------------------------

    async def in_executor(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

    async def in_books(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.books, function, *args)

    def change_limit(self, run: Run) -> int:
        """Most bytes of a change: an optimizer makes up to two tensors for each parameter in the first lease."""
        return 2 * (run.weights.nbytes() if run.weights is not None else 0) + MAX_CHANGE_EXTRA_BYTES

    def transfer_bytes(self, run: Run, entry: Entry) -> int:
        """What a worker may have to move for a lease: the program, the state down and up."""
        state = run.weights.nbytes() if run.weights is not None else 0
        return 2 * state + entry.program_bytes

    def rejected_error(self, run: Run, barred: list[Member]) -> DepinError:
        names = ", ".join(m.worker_id for m in barred[:4])
        last = self.last_rejection.get(run.run_id)
        if last is not None and last.fields.get("kind"):
            kind: type[DepinError] = getattr(errors, last.fields["kind"])
            return kind(f"no worker can run this loop ({names}): {last.fields['said']}")
        return HubError(
            f"no worker's report could be used ({names}): {'' if last is None else last.message}",
            hint="If the loss became nan, lower the learning rate; `%%depin train --strategy sync` shows where.",
        )

    def new_run_id(self) -> str:
        while True:
            run_id = f"run-{secrets.token_hex(2)}"
            try:
                self.journal.run(run_id)
            except NoSuchRun:
                if run_id not in self.runs:
                    return run_id

    # --- life -----------------------------------------------------------------------------------------

    async def recover(self) -> list[str]:
        """After a start: runs that a killed hub left running wait for their notebooks. Those that can't go on are interrupted, and all that
        isn't settled is. Returns the ids of the latter."""

        def mark() -> list[str]:
            running, unsettled = self.journal.unfinished()
            waiting = [run for run_id in running if self.reopening.able(run_id) and (run := self.reopening.waiting(run_id)) is not None]
            self.runs.update((run.run_id, run) for run in waiting)
            cut = [run_id for run_id in running if run_id not in self.runs]
            with self.journal.transaction() as connection:
                for run in waiting:
                    resumable.set_lost(connection, run.run_id, self.clock.now())
                for run_id in cut:
                    self.journal.end_run(run_id, state="interrupted", message="its hub ended", at=self.clock.now())
                    resumable.set_cut(connection, run_id)
                    lent.drop(connection, run_id)
            return [*cut, *unsettled]

        left = await self.in_books(mark)
        for run_id in left:
            try:
                result = await self.in_books(self._settle, run_id)
                await self.in_books(self.reopening.sum_up, run_id, result)
            except DepinError as error:
                log.warning("%s could not be settled: %s", run_id, error.message)
        await self.in_books(self.resuming.retire)
        await self.in_executor(self.blobs.prune)
        await self.in_executor(self.transfers.start, set(self.runs))
        return left

    def _settle(self, run_id: str) -> Settlement | None:
        """In the books' thread."""
        try:
            result = self.ledger.settle(run_id)
        except NoSuchRun:  # killed before its vault was opened: nothing was ever owed
            result = None
        with self.journal.transaction():
            self.journal.paid(run_id)
        return result

    def worker_lost(self, address: str) -> None:
        """Its connection is closed: lost at once."""
        member = self.members.pop(address, None)
        if member is not None:
            self.taking.member_gone(member)
            self.aggregation.lost(address)
            self.giving.dispatch()
            self.changed.notify()

    def tick(self) -> None:
        """Deadlines, silent kernels, and rounds that waited for a member on its way."""
        now = self.clock.monotonic()
        self.watch.tick()
        self.returning.tick(now)
        for run in list(self.runs.values()):
            if run.waiting_s is not None:
                if now - run.waiting_s > REOPEN_S and not run.finishing.locked():
                    self.spawn(self.finish(run, "interrupted", "its hub was killed, and its notebook didn't come back", cut=True))
            elif not run.polls and now - run.seen_s > KERNEL_SILENT_S and not run.finishing.locked():
                self.spawn(self.finish(run, "interrupted", "its kernel hasn't called for two minutes", cut=True))

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the hub failed", exc_info=task.exception())

    async def close(self) -> None:
        """Interrupts what runs, settles it, and lets every worker go."""
        for run in list(self.runs.values()):
            await self.finish(run, "interrupted", "the hub was shut down", cut=True)
        for address in list(self.members):
            self.worker_lost(address)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close_entry(self, run: Run, reason: str) -> None:
        entry = run.entry
        if entry is None:
            return
        await self.commits.abandon(run, entry, f"the entry was closed: {reason}")
        run.ends.update({run.version} if run.keeps else ())

        def close() -> None:
            self.journal.close_entry(run.run_id, entry.entry_id, reason, self.clock.now())
            resumable.end_site(self.journal.connection, run.run_id, entry.entry_id, run.version)

        await self.flush(run, close)
        await self.resuming.keep(run, self.states.size(run.run_id, run.version))
        if entry.spec.total is not None:
            run.total = run.done_before + entry.spec.total - entry.spec.first
        self.checkpoints.merged(run, entry_end=True)
        if run.entry is entry:
            run.entry = None

    async def flush(self, run: Run, also: Callable[[], None]) -> None:
        """One transaction with what the run has to write, and `also`."""
        rows, events = run.drain()

        def write() -> None:
            with self.journal.transaction():
                self.journal.add_leases(run.run_id, rows)
                self.journal.add_events(events)
                also()

        try:
            await self.in_books(write)
        except BaseException:
            run.backlog.extendleft(reversed(rows))
            run.events.extendleft(reversed(events))
            raise

    async def finish(self, run: Run, outcome: str, message: str, *, cut: bool = False) -> None:
        """Ends a run: its entry closes, the ledger settles. A settlement that fails is said, kept, and tried again at the next start.

        `cut`: nobody asked for it; a new kernel is offered to go on.
        """
        async with run.finishing:
            if run.ended:
                return
            run.state = "stopping"
            try:
                await self._end(run, outcome, message, cut)
            except (DepinError, sqlite3.Error, OSError) as error:
                await self._end_in_memory(run, error)
            self.last_rejection.pop(run.run_id, None)
            await self.in_executor(self.transfers.forget, run.run_id)
            for member in self.members.values():
                member.forget(run.run_id)
            run.weights = run.outer = run.reference = None
            self.ended[run.run_id] = run
            while len(self.ended) > ENDED_KEPT:
                del self.ended[next(iter(self.ended))]
            self.changed.notify()

    async def _end(self, run: Run, outcome: str, message: str, cut: bool) -> None:
        await self.close_entry(run, "done" if outcome == "finished" else "interrupt")
        await self.checkpoints.ended(run)
        run.state, run.message, run.ended_s = outcome if outcome in ENDED else "failed", message, self.clock.monotonic()
        run.say("ended", self.clock.now(), outcome=run.state, message=message)

        def end() -> None:
            self.journal.end_run(run.run_id, state=run.state, message=message, at=self.clock.now())
            lent.drop(self.journal.connection, run.run_id)
            if cut:
                resumable.set_cut(self.journal.connection, run.run_id)

        await self.flush(run, end)
        try:
            result = await self.in_books(self._settle, run.run_id)
        except MoneyError as error:
            run.say("settlement-failed", self.clock.now(), f"Not settled yet, tried again when the hub starts: {error.message}")
        else:
            run.settled = True
            run.signatures = tuple(result.signatures) if result is not None else ()
            for tally in run.tallies.values():
                tally.paid = tally.earned if result is not None and tally.wallet in result.paid else 0
        summary = self.status(run).to_dict()
        await self.flush(run, lambda: self.journal.set_summary(run.run_id, summary))
        await self.in_executor(self.states.prune, run.run_id, {run.version} | run.ends)
        self.runs.pop(run.run_id, None)
        await self.in_books(self.resuming.retire, run)

    async def _end_in_memory(self, run: Run, error: Exception) -> None:
        """What the journal can't be told now it learns at the hub's next start: there, this run was interrupted."""
        log.error("the end of %s could not be written: %s", run.run_id, error)
        told = await self.in_executor(explained, error, self.home, run.run_id)
        if not run.ended:
            run.state, run.ended_s = "interrupted", self.clock.monotonic()
        run.message = f"its end could not be written: {told}"
        run.say("not-written", self.clock.now(), run.message)
        run.entry = None
        self.checkpoints.forget(run)
        self.runs.pop(run.run_id, None)

    # --- what is shown --------------------------------------------------------------------------------

    def status(self, run: Run) -> Status:
        return status_of(run, self.prices, self.clock.monotonic())

    def statuses(self) -> list[Status]:
        """Active runs and those that ended lately, newest last. For displays: asking doesn't keep a run alive."""
        known = [*self.runs.values(), *(r for r in self.ended.values() if r.run_id not in self.runs)]
        return [self.status(run) for run in sorted(known, key=lambda r: r.started_at)]

    def devices(self) -> list[Device]:
        """The workers that are here."""
        tallies = [t for run in self.runs.values() for t in run.tallies.values()]
        return [device_of(m, self.prices, (t for t in tallies if t.worker_id == m.worker_id)) for m in self.members.values()]

    @property
    def accrued(self) -> Amount:
        """Tokens that active runs owe."""
        return Amount(sum(r.budget.spent.units for r in self.runs.values()), DPN)
