"""The hub's side of detached runs: one process each, started beside the hub, watched until it ends, ended with the hub.

It outlives a hub that is killed, as a notebook does; the next one takes it over."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from depin_nb.core import config
from depin_nb.core.errors import HubError, NoSuchRun
from depin_nb.hub.detached.folder import DetachedFolder

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator
    from depin_nb.hub.run import Run

log = logging.getLogger(__name__)

ALIVE_S = 5.0
ADOPTED_CHECK_S = 0.25
END_S = 12.0  # what a process gets to write its results when the hub ends (hub/launch.py waits 30 s for the hub)
COMMAND = (sys.executable, "-m", "depin_nb.session.detached.process")


class _Child:
    """A process that this hub has started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def wait(self) -> str:
        """How it ended, in words."""
        code = await self._process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself (exit {code})"

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


class _Adopted:
    """One that a killed hub had started. It holds its folder's lock as long as it lives."""

    def __init__(self, folder: DetachedFolder) -> None:
        self._folder = folder

    async def wait(self) -> str:
        while self._folder.alive():
            await asyncio.sleep(ADOPTED_CHECK_S)
        return "is gone"

    def signal(self, number: int) -> None:
        pid = self._folder.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Detached:
    """The processes by run. `detach` and `describe` are operations of docs/protocol.md."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._hub = coordinator
        self._processes: dict[str, _Child | _Adopted] = {}
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        return bool(self._processes)

    async def detach(self, run: str) -> dict[str, Any]:
        """Starts the process of a run whose captured names are in its folder. Raises HubError when that isn't so."""
        active = self._run(run)
        folder = DetachedFolder(run)
        if run in self._processes or not folder.capture.exists():
            raise HubError(f"{run} has no captured names that are waiting", hint="`%%depin train --detach` captures them.")
        with open(folder.log, "ab") as output:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                run,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "DEPIN_HOME": str(config.home()), "PYTHONUNBUFFERED": "1"},
            )
        self._watch_over(active, _Child(process))
        return {"pid": process.pid}

    def adopt(self) -> list[str]:
        """At the hub's start: runs of a killed one whose processes still live. Answers their ids."""
        found = [run for run in self._hub.runs.values() if (folder := DetachedFolder(run.run_id)).alive() and folder.outcome() is None]
        for run in found:
            self._watch_over(run, _Adopted(DetachedFolder(run.run_id)))
        return [run.run_id for run in found]

    def _watch_over(self, run: Run, process: _Child | _Adopted) -> None:
        self._processes[run.run_id] = process
        run.interrupt = lambda: process.signal(signal.SIGINT)
        task = asyncio.create_task(self._watch(run, process))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    def describe(self, run: str, strategy: str, where: str, passes: int | None = None, notices: Iterable[str] = ()) -> dict[str, Any]:
        """What the run's process found out when it reached the loop."""
        active = self._run(run)
        active.strategy, active.where, active.passes = str(strategy), str(where), passes
        for notice in notices:
            active.say("notice", self._hub.clock.now(), str(notice)[:500])

        def write() -> None:
            with self._hub.journal.transaction() as connection:
                connection.execute("UPDATE runs SET strategy=?, place=? WHERE run_id=?", (active.strategy, active.where, run))

        self._hub.books.submit(write)
        self._hub.changed.notify()
        return {"run_id": run}

    def _run(self, run: str) -> Run:
        found = self._hub.runs.get(run)
        if found is None:
            raise NoSuchRun(f"{run!r} is not an active run", run_id=run)
        return found

    async def _watch(self, run: Run, process: _Child | _Adopted) -> None:
        """While the process lives, so does its run, however long the user's own code takes between two calls."""
        ending = asyncio.create_task(process.wait())
        while not ending.done():
            self._hub.kernel.alive(run.run_id)
            if run.waiting_s is not None:
                run.waiting_s = self._hub.clock.monotonic()  # it comes back with its next call
            await asyncio.wait([ending], timeout=ALIVE_S)
        how = ending.result()
        self._processes.pop(run.run_id, None)
        run.interrupt = None
        if not run.ended:
            log.warning("the process of %s %s", run.run_id, how)
            await self._hub.finish(run, "failed", f"its process {how}; its weights are those of the last merge", cut=True)

    async def close(self) -> None:
        """Asks every process to write what it has and to end, then kills it."""
        for run, process in self._processes.items():
            if run in self._hub.runs:
                self._hub.runs[run].note = "the hub was shut down"
            process.signal(signal.SIGTERM)
        if self._watches:
            await asyncio.wait(self._watches, timeout=END_S)
        for run, process in self._processes.items():
            log.warning("the process of %s did not end and is killed", run)
            process.signal(signal.SIGKILL)
        if self._watches:
            await asyncio.wait(self._watches)
