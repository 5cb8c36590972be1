"""A worker's leases: one at work, one ahead, and reports that travel meanwhile. Decides nothing about what a lease does (runner.py)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import DepinError, HubDied
from ..core.lease import Lease, Report
from .handing import Handing
from .link import Go
from .runner import failure

if TYPE_CHECKING:
    from .link import HubLink
    from .runner import Finished, LeaseRunner

log = logging.getLogger(__name__)

AHEAD = 1  # leases that wait for the one at work
LEASE_POLL_S = 20.0  # how long the hub may hold the question for the next lease
ALIVE_INTERVAL_S = 0.5  # how soon at the latest a lease that isn't wanted any more stops
LEAVE_S = 2.0  # what the iteration under way gets when the process is told to end


@dataclass(eq=False)
class Held:
    """A lease in this worker's hands until its report is answered. `report` once it was run."""

    lease: Lease
    go: Go = field(default_factory=Go)
    finished: Finished | None = None
    report: Report | None = None
    again: bool = False  # it was handed in before, to an aggregator that is gone


class Serving:
    """`run()` asks for leases, runs them on `executor` (one thread) in the order in which they came, and hands in their reports so too.

    A report that is refused takes with it what was built on it: the later leases of that run.
    """

    def __init__(self, hub: HubLink, runner: LeaseRunner, executor: Executor, name: str, *, serves: bool = False) -> None:
        self._hub, self._runner, self._executor, self.name = hub, runner, executor, name
        self.leases = 0  # handed in
        self._handing = Handing(hub)
        self._serves = serves  # others' changes may be here: the hub has to know that this worker is
        self._held: dict[str, Held] = {}
        self._ahead: deque[Held] = deque()
        self._done: deque[Held] = deque()
        self._at_work: Held | None = None
        self._changed = asyncio.Condition()
        self._running: asyncio.Future[Finished | None] | None = None

    @property
    def lease_id(self) -> str:
        """The lease at work, "" without one."""
        return self._at_work.lease.lease_id if self._at_work is not None else ""

    async def run(self) -> None:
        """Returns when the hub says leave. Raises HubDied when it is gone."""
        tasks = [asyncio.create_task(part()) for part in (self._ask, self._work, self._report, self._listen)]
        for task in tasks:
            task.add_done_callback(_seen)  # the first one's exception is raised; the others end for the same reason, some later
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for held in self._held.values():
                held.go.stop()
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait(tasks, timeout=LEAVE_S)
                if self._running is not None:
                    await asyncio.wait([self._running], timeout=LEAVE_S)

    # --- the four parts -------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._ahead) < (AHEAD if self._at_work is not None else AHEAD + 1))
            answer = await self._hub.call("depin_lease", timeout_s=LEASE_POLL_S, held=self._named())
            if answer.get("leave"):
                return
            if answer.get("lease"):
                held = Held(Lease.from_dict(answer["lease"]))
                self._held[held.lease.lease_id] = held
                self._ahead.append(held)
                await self._tell()

    async def _work(self) -> None:
        while True:
            async with self._changed:
                # one finished report may wait for the one that travels, no more: each holds a copy of the state
                await self._changed.wait_for(lambda: self._ahead and len(self._done) < 2)
                held = self._at_work = self._ahead.popleft()
            try:
                await self._run(held)
            finally:
                self._at_work = None
            if held.report is not None and held.go():
                self._done.append(held)
            else:
                self._drop(held)
            if held.finished is not None and held.finished.report.exit:
                self._give_up(held)  # the loop was left: what comes after is never wanted
            await self._tell()

    async def _run(self, held: Held) -> None:
        if not held.go():
            return
        self._running = asyncio.get_running_loop().run_in_executor(self._executor, self._runner.run, held.lease, held.go)
        self._running.add_done_callback(_seen)
        try:
            held.finished = await asyncio.shield(self._running)
            held.report = held.finished.report if held.finished is not None else None
        except HubDied:
            raise
        except Exception as error:
            log.exception("%s could not run lease %s", self.name, held.lease.lease_id)
            held.report = failure(held.lease, error)

    async def _report(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._done)
            held = self._done[0]
            if held.go() and held.report is not None:
                answer = await self._handing.hand_in(held.lease, held.report)
                self.leases += not held.again
                if held.again:
                    pass  # what was built on it stands: at worst this one change is lost
                elif held.finished is None or not answer.get("accepted"):
                    self._drop(held)
                    self._give_up(held)
                else:
                    self._runner.accepted(held.finished)
            else:
                self._drop(held)
            self._held.pop(held.lease.lease_id, None)
            self._done.popleft()
            await self._tell()

    async def _listen(self) -> None:
        """Tells the hub that this worker is there, and learns which of its leases aren't wanted any more."""
        while True:
            await asyncio.sleep(ALIVE_INTERVAL_S)
            asked = self._named()
            if not asked and not self._serves:
                continue
            try:
                answer = await self._hub.call("depin_alive", shaped=False, lease=self.lease_id, held=asked)
            except DepinError as error:
                if isinstance(error, HubDied):
                    raise
                log.warning("%s drops its leases: %s", self.name, error)
                answer = {"drop": asked}
            for lease_id in answer.get("again", ()):
                if (kept := self._handing.taken(lease_id)) is not None:
                    self._held[lease_id] = anew = Held(replace(kept[0], aggregator=""), report=kept[1], again=True)
                    self._done.append(anew)
                    await self._tell()
            for lease_id in answer.get("drop", ()):
                self._handing.drop(lease_id)
                held = self._held.get(lease_id)
                if held is not None and held not in self._done:  # a report that travels gets its own answer
                    held.go.stop()

    def _named(self) -> list[str]:
        """The leases in hand, and those of which the hub may want the change again."""
        return list(dict.fromkeys([*self._held, *self._handing.kept]))

    # --- dropping -------------------------------------------------------------------------------------------

    def _drop(self, held: Held) -> None:
        """What it did counts for nothing."""
        if held.finished is not None:
            self._runner.refused(held.finished)
        self._held.pop(held.lease.lease_id, None)

    def _give_up(self, refused: Held) -> None:
        """Later leases of the same run built on this one, or aren't wanted after it."""
        ids = list(self._held)
        at = ids.index(refused.lease.lease_id) + 1 if refused.lease.lease_id in self._held else 0
        for lease_id in ids[at:]:
            later = self._held[lease_id]
            if later is not refused and later.lease.run_id == refused.lease.run_id:
                later.go.stop()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _seen(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
