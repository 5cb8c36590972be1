"""The scheduler plugin: Dask's RPC to the coordinator's operations, and closed connections to lost workers. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from distributed import Scheduler
from distributed.comm.core import Comm
from distributed.diagnostics.plugin import SchedulerPlugin

from depin_nb.hub.answers import answering
from depin_nb.hub.coordinator import Coordinator
from depin_nb.hub.peers import Peer

log = logging.getLogger(__name__)

TICK_S = 0.25
KERNEL_OPS = (
    "run_start", "run_finish", "blob_missing", "blob_put", "entry_open", "units", "results", "state", "entry_close", "replay", "kept",
    "needs", "output", "run_reopen",
)  # fmt: skip
SHARED_OPS = ("control", "status")  # kernels, displays and the command line
WORKER_OPS = ("join", "lease", "entry", "blob", "version", "reduce", "report", "alive", "say", "link", "part", "put", "placed")


class CoordinatorPlugin(SchedulerPlugin):
    """Adds the coordinator's `depin_*` operations to a scheduler: `scheduler.add_plugin(plugin)`, then `await plugin.start(scheduler)`.

    The hub's own `depin_hub`, `depin_scale` and `depin_shutdown` are app.py's.
    """

    name = "depin"

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self._kernels: dict[str, weakref.WeakSet[Comm]] = {}  # by run: the connections that its kernel called from
        self._ticking: asyncio.Task[None] | None = None

    def _from_kernel(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        answer_to = answering(operation)

        async def handler(comm: Comm, **request: Any) -> Any:
            answer = await answer_to(**request)
            run = request.get("run") or answer.get("run_id")
            if isinstance(run, str) and run in self.coordinator.runs:
                self._kernels.setdefault(run, weakref.WeakSet()).add(comm)
            return answer

        handler.__name__ = answer_to.__name__
        return handler

    def _kernels_alive(self) -> None:
        """A kernel whose connection is open is alive, however long the user's own code takes between two calls."""
        for run in list(self._kernels):
            if run not in self.coordinator.runs:
                del self._kernels[run]
            elif self._connected(run):
                self.coordinator.kernel.alive(run)
            else:
                self.coordinator.kernel.lost(run)

    def _connected(self, run: str) -> bool:
        active = self.coordinator.runs.get(run)
        detached = active is not None and active.interrupt is not None  # its process watches over it, also before its first call
        return detached or not all(comm.closed() for comm in self._kernels.get(run, ()))

    async def start(self, scheduler: Scheduler) -> None:
        """Also called by Dask when the plugin is registered by RPC; twice does no harm."""
        for op in KERNEL_OPS:
            scheduler.handlers[f"depin_{op}"] = self._from_kernel(getattr(self.coordinator.kernel, op))
        for op in SHARED_OPS:
            scheduler.handlers[f"depin_{op}"] = answering(getattr(self.coordinator.shared, op))
        for op in WORKER_OPS:
            scheduler.handlers[f"depin_{op}"] = answering(getattr(self.coordinator.workers, op))
        self.coordinator.connected = self._connected
        self.coordinator.aggregation.dial = Peer
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def close(self) -> None:
        """Stops ticking; the coordinator's own `close` ends runs in order and comes before."""
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
            self._ticking = None

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        self.coordinator.worker_lost(worker)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._kernels_alive()
                self.coordinator.tick()
            except Exception:
                log.exception("a tick failed")
