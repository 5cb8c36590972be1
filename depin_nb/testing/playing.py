"""Plays histories: sets a world up, lets it run to its end, and says which promises were broken."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..core.errors import HubDied
from ..ledger.embedded import EmbeddedChain
from ..ledger.wallet import Wallet, Wallets
from ..metering import price
from .devices import Device, simulated
from .histories import Fault, History
from .notebooks import Notebook
from .promises import broken
from .virtual import FIBERS, Killed, Process, VirtualClock, VirtualLoop
from .world import World

LIMIT_S = 3600.0  # virtual; the longest waits are a silent kernel's two minutes and deadlines
MEMORY = Path("/dev/shm")  # where there is one: nothing here has to survive the machine
EXPECTED = ("BudgetExhausted", "ResumeError", "no worker's report could be used")  # what a user may be told though no disk was full
CHAIN_RUNS = 400  # runs on one embedded chain; then a fresh one is made
MAX_FIBERS = 64


@dataclass(frozen=True)
class Played:
    """`broken`: promises, in words; none = it is well. `struck`: the faults that came. `told`: what happened, in virtual seconds."""

    history: History
    broken: tuple[str, ...]
    struck: tuple[Fault, ...]
    told: tuple[str, ...] = field(repr=False)
    outcomes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [str(self.history), *(f"  BROKEN {what}" for what in self.broken)]
        faults = ",".join(map(str, self.history.kept)) or "-"
        return "\n".join([*lines, f"  Again: python -m depin_nb.testing.faults {self.history.seed} --faults {faults} -v"])


class CachedWallets(Wallets):
    """The same wallets for all histories, each file read once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._known: dict[str, Wallet] = {}

    def named(self, name: str) -> Wallet:
        if name not in self._known:
            self._known[name] = super().named(name)
        return self._known[name]


class Player:
    """Plays one history after the other; what costs much to make (chain, wallets, threads) is shared. A context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="depin-faults-", dir=MEMORY if MEMORY.is_dir() else None))
        )
        self._wallets = CachedWallets(self._folder / "wallets")
        self._fibers = ThreadPoolExecutor(MAX_FIBERS, thread_name_prefix=FIBERS)
        self._stack.callback(self._fibers.shutdown)
        self._prices = price.load()
        self._chain: EmbeddedChain | None = None
        self._played = 0

    def __enter__(self) -> Player:
        self._stack.enter_context(simulated(self._wallets))
        return self

    def __exit__(self, *_: object) -> None:
        if self._chain is not None:
            self._chain.close()
        self._stack.close()

    def play(self, plan: History) -> Played:
        """Plays it to its end. Never raises for what the history does."""
        if self._chain is None or self._played % CHAIN_RUNS == 0:
            if self._chain is not None:
                self._chain.close()
            self._chain = EmbeddedChain(self._folder / f"chain-{self._played}.sqlite", self._wallets)
        self._played += 1
        home = self._folder / f"home-{self._played}"
        home.mkdir()
        torch.set_num_threads(1)
        try:
            return self._play(plan, home)
        finally:
            for folder in self._folder.glob(f"{home.name}*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _play(self, plan: History, home: Path) -> Played:
        clock = VirtualClock(LIMIT_S)
        world = World(plan, home, clock, self._chain, self._wallets, self._prices)
        before = _threads()
        loop = VirtualLoop(clock, self._fibers)
        said: list[str] = []
        loop.set_exception_handler(lambda _, context: said.extend(_text(context)))
        found: list[str] = []
        outcomes: list[str] = []
        with world.disk(), _errors(said):
            try:
                found += loop.run_until_complete(_lived(world, outcomes))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                found.append(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
                if world.hub is not None:
                    world.hub.release()
            finally:
                clock.lift()
                _cancel_all(loop)
                loop.close()
        if not found:
            found += broken(home, self._chain)
        if not world.disk_was_full:
            found += [f"said as an error: {text}" for text in said]
        found += [f"thread {name} is left" for name in _threads() - before]
        return Played(plan, tuple(found), tuple(world.struck), tuple(world.told), tuple(outcomes))


async def _lived(world: World, outcomes: list[str]) -> list[str]:
    """The history from its first moment to a last hub, closed in order. Returns what users saw that they may not see."""
    outside = Process("outside")
    outside.start(world.keep_hub())
    fleet = [Device(world, plan) for plan in world.plan.devices]
    for device in fleet:
        outside.start(device.live())
    users = [Notebook(world, plan) for plan in world.plan.notebooks]
    found: list[str] = []
    cells = [outside.start(user.live()) for user in users]
    await asyncio.wait(cells)
    for cell, user in zip(cells, users, strict=True):
        error = cell.exception()
        if error is not None:
            text = "".join(traceback.format_exception(error))
            found.append(f"{user.plan.name}: {text}")
        outcomes.append(user.outcome)
        if not world.disk_was_full:
            found += [f"{user.plan.name} was told: {text}" for text in user.errors if not any(word in text for word in EXPECTED)]
    found += [what for device in fleet for what in device.failures[:1]]
    await _end(world, outside)
    return found + [what for user in users for what in _for_the_user(user)]


async def _end(world: World, outside: Process) -> None:
    """Ends the hub as the history says; then one more starts, finds everything in order, and is closed."""
    world.stopped_until_s = world._disk_full_until_s = 0.0
    world._waiting.clear()
    await world.back.wait()
    hub = world.hub
    assert hub is not None
    if world.plan.ends == "closed":
        await hub.process.start(hub.close())
    await outside.kill()
    for name in list(Device.by_process):
        process = Device.by_process.pop(name).process
        if process is not None:
            await process.kill()
    await hub.process.kill()
    hub.release()
    world.back.clear()
    last = world.hub = type(hub)(world, 99)
    await last.process.start(last.start())
    await last.process.start(last.close())
    left = [task for task in last.process.tasks if not task.done()]
    assert not left, f"tasks of a closed hub: {left}"
    last.release()


def _for_the_user(user: Notebook) -> list[str]:
    """What a cell that finished has replayed: each iteration once, in order, up to where its body left."""
    if user.outcome != "finished":
        return []
    found = []
    for number, places in user.seen.items():
        base, total = (number - 1) * user.plan.total, user.plan.total
        end = total if user.leaves_at is None or not base <= user.leaves_at < base + total else user.leaves_at - base + 1
        if places != list(range(end)):
            found.append(f"{user.plan.name} saw {places} in pass {number} of {end} iterations")
    return found


def _text(context: dict[str, object]) -> list[str]:
    """What the loop complains of, but for what a kill leaves behind."""
    error = context.get("exception")
    return [] if isinstance(error, (Killed, HubDied)) else [f"{context.get('message')}: {error!r}"]


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for _ in range(100):
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        tasks = asyncio.all_tasks(loop)


def _threads() -> set[str]:
    return {t.name for t in threading.enumerate() if not t.name.startswith((FIBERS, "litesvm"))}


@contextmanager
def _errors(said: list[str]) -> Iterator[None]:
    """What hub and ledger log as an error: nothing that happens outside them may be one. (A worker may say that it lost its lease.)"""

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info is None or not isinstance(record.exc_info[1], Killed):
                said.append(self.format(record))

    logger, handler = logging.getLogger("depin_nb"), Listening(logging.ERROR)
    handler.addFilter(lambda record: not record.name.startswith("depin_nb.worker"))
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
