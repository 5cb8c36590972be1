"""The hub's Dask cluster: workers of any backend side by side, each a process that the hub started and ends by its pid."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import psutil
from distributed import Scheduler
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import ProcessInterface, SpecCluster

from ..core.errors import UsageError, WorkerError
from ..ports import Backend, WorkerSpec
from .processes import Known, began_at
from .processes import add as add_known
from .processes import read as read_known
from .processes import write as write_known

log = logging.getLogger(__name__)

TERMINATE_S = 5.0  # what a worker gets to leave in order before it is killed
ADOPTED_CHECK_S = 0.25
MAX_WORKERS = 256  # of processes on one machine; more is a typing mistake

Died = Callable[[str, int], None]


class WorkerProcess(ProcessInterface):
    """One worker process. It outlives a hub that is killed, waits for the next one, which adopts it, and ends where none comes."""

    def __init__(self, scheduler: str, name: str, backend: Backend, spec: WorkerSpec, died: Died) -> None:
        super().__init__(scheduler=scheduler, name=name)
        self.scheduler, self.name, self.backend, self.spec = scheduler, name, backend, spec
        self._died = died
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def known(self) -> Known | None:
        """How the next hub would find it."""
        return Known(self.name, self.backend.name, self.spec.profile, self.pid, began_at(self.pid)) if self.pid else None

    async def start(self) -> None:
        """Raises WorkerError when the process can't be started."""
        argv, env = self.backend.command(self.spec, self.scheduler)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=None,  # the hub's log
                stderr=None,
                env={**os.environ, **env},
            )
        except OSError as error:
            self.status = Status.failed
            raise WorkerError(f"the worker {self.name} could not be started: {error.strerror}", worker=self.name) from None
        if (known := self.known()) is not None:
            add_known(known)
        self._watch = asyncio.create_task(self._wait())
        await super().start()

    async def _ended(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def _wait(self) -> None:
        code = await self._ended()
        unasked = self.status == Status.running
        self.status = Status.closed
        self._event_finished.set()
        if unasked:
            self._died(self.name, code)

    async def close(self) -> None:
        """Asks the process to end, then kills it. Returns when it is gone."""
        if self.status == Status.running:
            self.status = Status.closing
        if self._watch is not None:
            self._signal(signal.SIGTERM)
            done, _ = await asyncio.wait([self._watch], timeout=TERMINATE_S)
            if not done:
                log.warning("worker %s (process %d) did not end and is killed", self.name, self.pid)
                self._signal(signal.SIGKILL)
                await asyncio.wait([self._watch])
        await super().close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


class AdoptedProcess(WorkerProcess):
    """One that a killed hub had started."""

    def __init__(self, scheduler: str, known: Known, backend: Backend, died: Died) -> None:
        super().__init__(scheduler, known.name, backend, WorkerSpec(known.name, known.profile, {}), died)
        self._known = known

    @property
    def pid(self) -> int | None:
        return self._known.pid

    def known(self) -> Known:
        return self._known

    async def start(self) -> None:
        self._watch = asyncio.create_task(self._wait())
        await ProcessInterface.start(self)

    async def _ended(self) -> int:
        # not a child of this process: the system tells nobody but its parent how it ended
        while self._known.process() is not None:
            await asyncio.sleep(ADOPTED_CHECK_S)
        return 0

    def _signal(self, number: signal.Signals) -> None:
        process = self._known.process()
        if process is not None:
            with suppress(psutil.Error):
                process.send_signal(number)


class Fleet(SpecCluster):
    """A SpecCluster whose workers come from several backends. `notice` is told in plain words about workers that ended by themselves."""

    def __init__(
        self, backends: Mapping[str, Backend], *, host: str = "127.0.0.1", port: int = 0, notice: Callable[[str], None] | None = None
    ) -> None:
        """`port`: of the scheduler, where it is free; else, and for 0, any."""
        self.backends = backends
        self._notice = notice or log.warning
        scheduler = {
            "cls": Scheduler,
            "options": {
                "protocol": "tcp",
                "host": host,
                "port": free_port(host, port),
                "dashboard": True,
                "dashboard_address": f"{host}:0",
            },
        }
        super().__init__(scheduler=scheduler, asynchronous=True, name="depin-hub", shutdown_on_close=False)
        self._scaling = asyncio.Lock()

    @property
    def processes(self) -> dict[str, WorkerProcess]:
        return dict(self.workers)

    async def adopt(self) -> list[str]:
        """Takes over the processes of a killed hub that still live; they dial this one. Answers their names."""
        names = []
        for known in read_known():
            if known.backend not in self.backends or known.name in self.worker_spec:
                continue
            backend = self.backends[known.backend]
            spec = WorkerSpec(known.name, known.profile, {})
            process = AdoptedProcess(self.scheduler.address, known, backend, self._worker_died)
            await process
            self._created.add(process)
            self.worker_spec[known.name] = {"cls": WorkerProcess, "options": {"backend": backend, "spec": spec, "died": self._worker_died}}
            self.workers[known.name] = process
            names.append(known.name)
        self._write_down()
        return names

    def _write_down(self) -> None:
        write_known(known for process in self.processes.values() if (known := process.known()) is not None)

    def names(self, backend: str | None = None) -> list[str]:
        """The workers wanted now, of one backend or all, in the order in which they were asked for."""
        return [name for name, spec in self.worker_spec.items() if backend is None or spec["options"]["backend"].name == backend]

    async def scale_to(self, count: int, backend: str) -> list[str]:
        """Makes `count` workers of one backend; those of others stay. Answers their names once their processes run.

        The newest leave first. Raises UsageError for an unknown backend or count, WorkerError when a process can't be started.
        """
        if backend not in self.backends:
            raise UsageError(f"{backend!r} is not a backend", hint=f"Known: {', '.join(self.backends)}.")
        if not 0 <= count <= MAX_WORKERS:
            raise UsageError(f"{count} workers can't be", hint=f"Between 0 and {MAX_WORKERS}.")
        async with self._scaling:
            existing = self.names(backend)
            leaving = existing[count:]
            if leaving:
                await self._retire(leaving)
            for spec in self.backends[backend].plan(count, existing) if count > len(existing) else ():
                options = {"backend": self.backends[backend], "spec": spec, "died": self._worker_died}
                self.worker_spec[spec.name] = {"cls": WorkerProcess, "options": options}
            try:
                await self._correct_state()
            except WorkerError:
                self._forget_failed()
                raise
            finally:
                self._write_down()
            return self.names(backend)

    async def _retire(self, names: list[str]) -> None:
        # Dask's own correction hands names where the scheduler wants addresses, so results would not be moved to those who stay
        try:
            await self.scheduler.retire_workers(names=names, close_workers=False, remove=False)
        except Exception:
            log.exception("results of %s could not be moved", ", ".join(names))
        for name in names:
            self.worker_spec.pop(name, None)

    def _forget_failed(self) -> None:
        for name, process in list(self.workers.items()):
            if process.status in (Status.failed, Status.closed):
                self.worker_spec.pop(name, None)
                self.workers.pop(name, None)

    def _worker_died(self, name: str, code: int) -> None:
        """A worker process ended that nobody asked to: it isn't expected any more, so that `scale_to` starts another one."""
        self.worker_spec.pop(name, None)
        self.workers.pop(name, None)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself (exit {code})"
        self._write_down()
        self._notice(f"worker {name} {how}")

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # not SpecCluster's: 15 s after a lost connection it closes whatever worker has that name by then; here the process's end decides
        Cluster._update_worker_status(self, op, msg)

    def scale(self, n: int = 0, memory: Any = None, cores: Any = None) -> Any:
        """Dask's own `scale`: `n` workers in all. Only used to end all of them."""
        for name in list(self.worker_spec)[n:]:
            del self.worker_spec[name]
        return self._correct_state()


def free_port(host: str, port: int) -> int:
    """The port where nobody listens on it, else 0: any."""
    if not 1024 <= port < 65536:
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the scheduler's own: connections of the killed one may linger
        try:
            probe.bind((host, port))
        except OSError:
            return 0
    return port
