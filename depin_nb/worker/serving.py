"""A worker's leases: one at work, one ahead, and reports that travel meanwhile. Decides nothing about what a lease does (runner.py).

They outlive the connection: while the hub is gone, the lease at work goes on and finished ones wait in memory, a few at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import DepinError, HubDied
from ..core.lease import Lease, Report
from ..core.parts import WHOLE_BYTES
from .handing import hand_in
from .link import Go
from .runner import failure

if TYPE_CHECKING:
    from .link import HubLink
    from .runner import Ask, Finished, LeaseRunner

log = logging.getLogger(__name__)

AHEAD = 1  # leases that wait for the one at work
LEASE_POLL_S = 20.0  # how long the hub may hold the question for the next lease
ALIVE_INTERVAL_S = 0.5  # how soon at the latest a lease that isn't wanted any more stops
LEAVE_S = 2.0  # what the iteration under way gets when the process is told to end
TAKEN = 4  # accepted reports that are kept: as many rounds of a run may be on their way into a version when the hub is killed
TAKEN_BYTES = 64 << 20


@dataclass(eq=False)
class Held:
    """A lease in this worker's hands until its report is answered. `report` once it was run; `taken`: a hub had accepted it."""

    lease: Lease
    go: Go = field(default_factory=Go)
    finished: Finished | None = None
    report: Report | None = None
    taken: bool = False
    parked: bool = False  # its change is at an aggregator, and no merge is known that holds it

    @property
    def nbytes(self) -> int:
        return 0 if self.report is None else len(self.report.change) + len(self.report.left) + sum(map(len, self.report.logs))


class Serving:
    """`serve(hub)` asks a hub for leases and hands in their reports, in the order in which they came; `work()` runs the leases on
    `executor` (one thread) over all hubs, until it is cancelled.

    A report that is refused takes with it what was built on it: the later leases of that run.
    """

    def __init__(self, runner: Callable[[Ask], LeaseRunner], executor: Executor, name: str) -> None:
        """`runner`: makes the one that runs leases, from what it asks a hub by."""
        self._executor, self.name = executor, name
        self._runner = runner(self.ask)
        self.leases = 0  # handed in
        self._hub: HubLink | None = None
        self._serves = False
        self._held: dict[str, Held] = {}
        self._ahead: deque[Held] = deque()
        self._done: deque[Held] = deque()
        self._later: set[str] = set()  # leases that a hub wants, but not yet
        self._taken: deque[Held] = deque()
        self._at_work: Held | None = None
        self._changed = asyncio.Condition()
        self._running: asyncio.Future[Finished | None] | None = None

    @property
    def lease_id(self) -> str:
        """The lease at work, "" without one."""
        return self._at_work.lease.lease_id if self._at_work is not None else ""

    @property
    def held(self) -> list[str]:
        """The leases in its hands, in the order in which they came: with those whose reports a hub took that may not have merged them."""
        return [*(h.lease.lease_id for h in self._taken), *self._held]

    async def returned(self, keep: Collection[str], later: Collection[str]) -> None:
        """Another hub is there, which lets it `keep` these leases; taken reports among them are handed in again. `later`: not yet."""
        self._later = set(later)
        again = [held for held in self._taken if held.lease.lease_id in keep]
        self._taken.clear()
        for lease_id, held in self._held.items():
            held.lease = replace(held.lease, aggregator="")  # what was arranged for it went with the hub
            if lease_id not in keep:
                held.go.stop()
        await self._hand_in_again(again)

    @property
    def down_part_bytes(self) -> int:
        """How long a part of what is fetched should be, by the link to the hub that is there now."""
        return WHOLE_BYTES if self._hub is None else self._hub.down_part_bytes

    def ask(self, op: str, go: Go, **request: Any) -> Any:
        """As `HubLink.ask`, of the hub that is there now."""
        if self._hub is None:
            raise HubDied(f"no hub is there ({op})")
        return self._hub.ask(op, go, **request)

    def ask_peer(self, address: str, op: str, go: Go, **request: Any) -> Any:
        """As `HubLink.ask_peer`, over the same link."""
        if self._hub is None:
            raise HubDied(f"no hub is there ({op})")
        return self._hub.ask_peer(address, op, go, **request)

    async def serve(self, hub: HubLink, *, serves: bool = False) -> None:
        """Returns when the hub says leave. Raises HubDied when it is gone; what is held is for the next one.

        `serves`: others' changes may be here, so that the hub has to know that this worker is.
        """
        self._hub, self._serves = hub, serves
        tasks = [asyncio.create_task(part(hub)) for part in (self._ask, self._report, self._listen)]
        for task in tasks:
            task.add_done_callback(_seen)  # the first one's exception is raised; the others end for the same reason, some later
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait(tasks, timeout=LEAVE_S)
            for held in self._held.values():
                if held.lease.gang:
                    held.go.stop()  # its ranks have lost each other

    async def stop(self) -> None:
        """Nothing that is held is wanted any more; returns when the iteration under way has ended, or has had LEAVE_S."""
        for held in self._held.values():
            held.go.stop()
        with suppress(asyncio.CancelledError):
            if self._running is not None:
                await asyncio.wait([self._running], timeout=LEAVE_S)

    # --- the four parts -------------------------------------------------------------------------------------

    async def _ask(self, hub: HubLink) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._ahead) < (AHEAD if self._at_work is not None else AHEAD + 1))
            link = await hub.changed()
            answer = await hub.call("depin_lease", timeout_s=LEASE_POLL_S, held=self._named(), link=link)
            if answer.get("leave"):
                return
            if answer.get("lease"):
                held = Held(Lease.from_dict(answer["lease"]))
                self._held[held.lease.lease_id] = held
                self._ahead.append(held)
                await self._tell()

    async def work(self) -> None:
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
        except HubDied as error:  # it could not be fetched whole; the hub gives it again
            log.warning("%s could not begin lease %s: %s", self.name, held.lease.lease_id, error.message)
        except Exception as error:
            log.exception("%s could not run lease %s", self.name, held.lease.lease_id)
            held.report = failure(held.lease, error)

    async def _report(self, hub: HubLink) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(self._next_done)
            held = self._next_done()
            if held is None:
                continue
            if held.go() and held.report is not None:
                answer, held.parked = await hand_in(hub, held.lease, held.report)
                if answer.get("again"):
                    self._later.add(held.lease.lease_id)
                    continue
                self._answered(held, bool(answer.get("accepted")))
            else:
                self._drop(held)
            self._held.pop(held.lease.lease_id, None)
            self._done.remove(held)
            await self._tell()

    def _next_done(self) -> Held | None:
        """The first one whose run doesn't wait for its notebook."""
        waiting = {h.lease.run_id for i, h in self._held.items() if i in self._later}
        return next((h for h in self._done if h.lease.run_id not in waiting), None)

    def _answered(self, held: Held, accepted: bool) -> None:
        self.leases += not held.taken
        if accepted and (held.taken or held.finished is not None):
            if held.finished is not None:
                self._runner.accepted(held.finished)
            held.taken, held.finished = True, None  # a copy of the state less
            self._keep(held)
        elif not held.taken:  # one that was taken before is merged by now, or done again by others
            self._drop(held)
            self._give_up(held)

    async def _listen(self, hub: HubLink) -> None:
        """Tells the hub that this worker is there, and learns which of its leases aren't wanted any more."""
        while True:
            await asyncio.sleep(ALIVE_INTERVAL_S)
            asked = self._named()
            if not asked and not self._serves:
                continue
            try:
                answer = await hub.call("depin_alive", shaped=False, lease=self.lease_id, held=asked)
            except DepinError as error:
                if isinstance(error, HubDied):
                    raise
                log.warning("%s drops its leases: %s", self.name, error)
                answer = {"drop": asked}
            if self._later != (later := set(answer.get("later", ()))):
                self._later = later
                await self._tell()
            if lost := [h for h in self._taken if h.parked and h.lease.lease_id in answer.get("again", ())]:
                await self._hand_in_again(lost)
            for taken in self._taken:
                taken.parked = taken.parked and taken.lease.lease_id not in answer.get("drop", ())
            for lease_id in answer.get("drop", ()):
                held = self._held.get(lease_id)
                if held is not None and held not in self._done:  # a report that travels gets its own answer
                    held.go.stop()

    # --- keeping and dropping ---------------------------------------------------------------------------------

    def _named(self) -> list[str]:
        """The leases in hand, and those whose changes an aggregator may yet lose."""
        return [*(h.lease.lease_id for h in self._taken if h.parked), *self._held]

    async def _hand_in_again(self, lost: Collection[Held]) -> None:
        """Taken reports go to the hub once more, which takes the change itself."""
        self._taken = deque(h for h in self._taken if h not in lost)
        for held in lost:
            held.lease, held.parked = replace(held.lease, aggregator=""), False
        self._held = {held.lease.lease_id: held for held in lost} | self._held
        self._done.extendleft(reversed([*lost]))
        await self._tell()

    def _keep(self, held: Held) -> None:
        """An accepted report, in case the hub is killed before it is merged, or the aggregator that has its change."""
        if held.lease.gang:
            return
        self._taken.append(held)
        while len(self._taken) > TAKEN or (len(self._taken) > 1 and sum(h.nbytes for h in self._taken) > TAKEN_BYTES):
            self._taken.popleft()

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
