"""One hub and what surrounds it, in one process on virtual time: the real coordinator, journal, ledger, chain and plugin.

A hub lives in a folder and may be killed at any point; the next one starts over the same files. What is simulated: time, the network,
and the disk's refusals.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import sqlite3
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from depin_nb.hub.records import blobs as files

from ..core.errors import DepinError, HubDied
from ..hub.client import typed
from ..hub.coordinator import Coordinator
from ..hub.plugin import CoordinatorPlugin
from ..hub.records.journal import Journal
from ..hub.versions import spool
from ..hub.versions.spool import Spool
from ..hub.versions.states import StateFiles
from ..ledger import store
from ..ledger.ledger import Ledger
from ..metering.price import PriceBook
from .histories import Fault, History
from .virtual import Jobs, Killed, Process, VirtualClock

RESTART_S = 2.0  # how long a killed hub stays away
NOTICED_S = 30.0  # after so long the hub learns of a connection that went without a word


class FaultyJournal(Journal):
    """The journal, with a point before, in and after each transaction."""

    def __init__(self, path: Path, point: Callable[[str], None]) -> None:
        self._point: Callable[[str], None] = lambda name: None
        super().__init__(path)
        self.connection.execute("PRAGMA synchronous=OFF")  # nothing here survives a power cut anyway
        self._point = point

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._point("journal: begins")
        with super().transaction() as connection:
            yield connection
            self._point("journal: writes")
        self._point("journal: written")


class Comm:
    """A connection as the plugin sees it."""

    def __init__(self) -> None:
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def closed(self) -> bool:
        return self.broken.done()

    def close(self) -> None:
        if not self.broken.done():
            self.broken.set_result(None)


class Hub:
    """One life of the hub's process."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.process = world, Process(f"hub {number}")
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        path = world.home / "journal.sqlite"
        self.journal = FaultyJournal(path, world.point)
        self.ledger = Ledger(lambda: _relaxed(store.connect(path)), world.chain, world.wallets, at=lambda _: world.point("ledger"))
        executor, books = (Jobs(self.process, serial=serial, delay_s=world.job_delay_s, point=self._point) for serial in (False, True))
        self.coordinator = Coordinator(
            home=world.home,
            clock=world.clock,
            journal=self.journal,
            ledger=self.ledger,
            prices=world.prices,
            executor=executor,
            books=books,
        )
        spool_bytes, mapped_bytes = world.rooms
        self.coordinator.spool = Spool(world.home, spool_bytes)
        self.coordinator.states = StateFiles(world.home / "states", mapped_bytes)
        if world.plan.part_bytes:
            self.coordinator.transfers.whole_bytes = self.coordinator.aggregation.whole_bytes = world.plan.part_bytes
        self.coordinator.transfers.busy = 0 if world.plan.tree else self.coordinator.transfers.busy
        self.coordinator.aggregation.tree_bytes = 0 if world.plan.tree else sys.maxsize
        self.coordinator.new_run_id = world.new_run_id  # type: ignore[method-assign]
        self.plugin = CoordinatorPlugin(self.coordinator)

    def _point(self, name: str) -> None:
        if self.process.alive:
            self.world.point(name)

    async def start(self) -> None:
        await self.coordinator.recover()
        await self.plugin.start(self)
        self.coordinator.aggregation.dial = lambda address: Peer(self.world, address, "", self.world.short_way)

    async def close(self) -> None:
        """In order, as the hub's process does it."""
        await self.process.start(self._close())
        self.release()

    async def _close(self) -> None:
        await self.coordinator.close()
        await self.plugin.close()

    def die(self) -> None:
        """Nothing of it runs any more from here on."""
        if self.process.alive:
            self.process.alive = False
            self.died.set_result(None)

    def release(self) -> None:
        self.die()
        self.ledger.close()
        self.journal.close()


def _relaxed(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA synchronous=OFF")
    return connection


class Peer:
    """Calls to a worker, from the hub or another worker. `wait()`: each way's delay."""

    def __init__(self, world: World, address: str, caller: str, wait: Callable[[], Any]) -> None:
        self._world, self._address, self._caller, self._wait = world, address, caller, wait

    async def call(self, op: str, *, shaped: bool = True, **request: Any) -> Any:
        await self._wait()
        process, handlers = self._world.serving.get(self._address, (None, {}))
        if process is None or not process.alive or op not in handlers:
            raise HubDied("no such worker")
        task = process.start(handlers[op](worker=self._caller, **request))
        await asyncio.wait({task})
        if task.cancelled() or not process.alive:
            raise HubDied("the worker is gone")
        answer = task.result()
        await self._wait()
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise typed(answer["error"])
        return answer

    async def close(self) -> None:
        """Nothing is held."""


class World:
    """What a history happens in. `faults` that have come are in `struck`."""

    def __init__(self, plan: History, home: Path, clock: VirtualClock, chain: Any, wallets: Any, prices: PriceBook) -> None:
        self.plan, self.home, self.clock, self.chain, self.wallets, self.prices = plan, home, clock, chain, wallets, prices
        self.rng = random.Random(f"depin-nb world {plan.seed}")
        self.rooms = random.Random(f"depin-nb rooms {plan.seed}").choice(((0, 0), (3000, 1 << 20), (1 << 20, 0)))  # in the hub's memory
        self.hub: Hub | None = None
        self.back = asyncio.Event()  # a hub is there
        self.struck: list[Fault] = []
        self.runs: list[str] = []
        self.told: list[str] = []  # what happened, for a failing history
        self.serving: dict[str, tuple[Process, dict[str, Any]]] = {}  # workers that others can call, by address
        self._waiting = list(plan.faults)
        self._seen: Counter[tuple[str, str]] = Counter()
        self._lives = itertools.count(1)
        self._deaths: asyncio.Queue[Hub] = asyncio.Queue()
        self._disk_full_until_s = self.stopped_until_s = 0.0
        self._life = 0

    # --- the hub --------------------------------------------------------------------------------------

    async def keep_hub(self) -> None:
        """Starts a hub, and another one whenever it is killed."""
        while True:
            self._life = next(self._lives)
            self.hub = hub = Hub(self, self._life)
            starting = hub.process.start(hub.start())
            await asyncio.wait({starting, hub.died}, return_when=asyncio.FIRST_COMPLETED)
            if hub.process.alive:
                try:
                    starting.result()
                except DepinError as error:  # the process ends with it; whoever needs a hub starts the next one
                    self.tell(f"{hub.process.name} can't start: {error.message}")
                    self.kill_hub()
                else:
                    self.tell(f"{hub.process.name} is there")
                    self.back.set()
            dead = await self._deaths.get()
            self.back.clear()
            await dead.process.kill()
            dead.release()
            await asyncio.sleep(RESTART_S)

    def kill_hub(self) -> None:
        hub = self.hub
        if hub is not None and hub.process.alive:
            self.back.clear()
            hub.die()
            self._deaths.put_nowait(hub)

    def new_run_id(self) -> str:
        run_id = f"run-{self.plan.seed}-{len(self.runs) + 1}"
        self.runs.append(run_id)
        return run_id

    def job_delay_s(self) -> float:
        late = max(0.0, self.stopped_until_s - self.clock.at_s)
        return late + (self.rng.choice((0.0, 0.001, 0.03, 0.3)) if self.rng.random() < 0.2 else 0.0)

    # --- faults ---------------------------------------------------------------------------------------

    def tell(self, what: str) -> None:
        self.told.append(f"{self.clock.at_s - 1000:9.3f} {what}".replace(str(self.home), "HOME"))

    def due(self, who: str, lease: int, point: str) -> list[Fault]:
        """The faults that come now; each comes once."""
        found = [f for f in self._waiting if (f.who, f.lease, f.point) == (who, lease, point)]
        for fault in found:
            self._waiting.remove(fault)
            self.struck.append(fault)
            self.tell(f"FAULT {fault}")
        return found

    def point(self, name: str) -> None:
        """The hub comes to a point. Raises Killed, or what a full disk says."""
        self._seen["hub", name] += 1
        for fault in self.due("hub", self._seen["hub", name], name):
            if fault.kind == "kill":
                self.kill_hub()
                raise Killed
            if fault.kind == "disk":
                self._disk_full_until_s = self.clock.at_s + fault.for_s
            if fault.kind == "wall":
                self.clock.wall_offset_s += fault.for_s
            if fault.kind == "stop":
                self.stopped_until_s = self.clock.at_s + fault.for_s
        if self.clock.at_s < self._disk_full_until_s:
            if name in ("journal: begins", "journal: writes"):
                raise sqlite3.OperationalError("database or disk is full")
            if name in ("file: written", "change: kept"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def disk_was_full(self) -> bool:
        return any(f.kind == "disk" for f in self.struck)

    @contextmanager
    def disk(self) -> Iterator[None]:
        """The hub's file writes come to points; each of its lives has a process id of its own."""

        def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
            self.point("change: kept")
            return os.pwrite(descriptor, data, offset)

        def fsync(descriptor: int) -> None:
            self.point("file: named" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file: written")

        real = files.os
        shim = SimpleNamespace(**{**vars(os), "fsync": fsync, "getpid": lambda: 100_000 + self._life})
        files.os = shim  # type: ignore[assignment]
        spool.os = SimpleNamespace(**{**vars(os), "pwrite": pwrite})  # type: ignore[assignment]
        try:
            yield
        finally:
            files.os = spool.os = real

    # --- the network ----------------------------------------------------------------------------------

    async def ask(self, comm: Comm, op: str, request: dict[str, Any], *, twice: bool = False, wait: Callable[[], Any]) -> Any:
        """One request and its answer, as data. Raises OSError when the hub or the connection goes. `wait()`: each way's delay."""
        await wait()
        hub = self.hub
        if hub is None or not self.back.is_set() or not hub.process.alive or comm.closed():
            raise OSError("no connection")
        if (late_s := self.stopped_until_s - self.clock.at_s) > 0:
            await asyncio.sleep(late_s)
        handler = hub.handlers[op]
        if handler.__code__.co_varnames[:1] == ("comm",):
            request = {"comm": comm, **request}
        for _ in range(1 + twice):
            if not hub.process.alive:
                raise OSError("the hub is gone")
            task = hub.process.start(handler(**request))
        await asyncio.wait({task, hub.died, comm.broken}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or task.cancelled() or not hub.process.alive:
            raise OSError("the connection is lost")
        answer = task.result()
        await wait()
        if not hub.process.alive or comm.closed():
            raise OSError("the connection is lost")
        return answer

    async def short_way(self) -> None:
        await asyncio.sleep(0.001)

    def lost(self, address: str) -> None:
        """The hub learns that a worker's connection is closed."""
        hub = self.hub
        if hub is not None and hub.process.alive and self.back.is_set():
            hub.process.start(self._lost(hub, address))

    async def _lost(self, hub: Hub, address: str) -> None:
        hub.plugin.remove_worker(hub, address)
