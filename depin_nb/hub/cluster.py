"""The kernel's view of the hub as a Dask cluster: `scale`, `adapt`, the dashboard and `Client(cluster)` work as Dask users know them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from distributed.core import Status, rpc
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from tornado.ioloop import IOLoop

from depin_nb.hub.client import CONNECT_TIMEOUT_S, typed
from depin_nb.hub.info import HubInfo

from ..core.errors import HubDied

REFRESH_S = 1.0
HERE_EVERY = 30  # refreshes


class HubCluster(Cluster):
    """A proxy: closing it leaves the hub and its workers running. `backend` is what `scale` adds and removes workers of."""

    _ipython_display_ = None  # the HTML repr, once; not Dask's widget, which renders itself again twice a second

    def __init__(self, info: HubInfo, *, backend: str = "local", loop: IOLoop | None = None, asynchronous: bool = False) -> None:
        super().__init__(asynchronous=asynchronous, loop=loop, quiet=True, name=f"depin-{info.hub_id}")
        self.info = info
        self.backend = backend
        self._names: set[str] | None = None
        self._watch_task: asyncio.Task[None] | None = None
        if not self.called_from_running_loop:
            self._loop_runner.start()
            self.sync(self._start)

    async def _start(self) -> None:
        # not Dask's own subscription to worker status: the scheduler keeps a single one, so a second notebook would cut off the first
        self.scheduler_comm = rpc(self.info.scheduler, timeout=CONNECT_TIMEOUT_S)
        try:
            await self._refresh()
        except OSError as error:
            await self.scheduler_comm.close_rpc()
            raise HubDied(f"the hub does not answer at {self.info.scheduler} ({error})") from None
        self._watch_task = asyncio.ensure_future(self._watch())
        self.status = Status.running

    async def _refresh(self) -> None:
        self.scheduler_info = SchedulerInfo(await self.scheduler_comm.identity())

    async def _watch(self) -> None:
        """Keeps `scheduler_info` fresh, and tells the hub now and then that somebody is here, so that it doesn't end as idle."""
        rounds = 0
        while self.status == Status.running:
            try:
                if rounds % HERE_EVERY == 0:
                    await self.scheduler_comm.depin_hub()
                await self._refresh()
            except OSError:
                self.scheduler_info = SchedulerInfo({"workers": {}})
            rounds += 1
            await asyncio.sleep(REFRESH_S)

    async def _close(self) -> None:
        if self._watch_task is not None:
            self._watch_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch_task
            self._watch_task = None
        await super()._close()

    def __await__(self) -> Any:
        async def started() -> HubCluster:
            if self.scheduler_comm is None:
                await self._start()
            return self

        return started().__await__()

    def scale(self, n: int) -> Any:
        """Makes `n` workers of `backend`; those of other backends stay. Answers the backend's workers' names."""
        return self.sync(self._scale, n, self.backend)

    async def _scale(self, count: int, backend: str) -> list[str]:
        try:
            answer = await self.scheduler_comm.depin_scale(count=count, backend=backend)
        except OSError as error:
            raise HubDied(f"the hub stopped answering ({error})") from None
        if "error" in answer:
            raise typed(answer["error"])
        self._names = set(answer["workers"])
        await self._refresh()
        return list(answer["workers"])

    async def scale_down(self, workers: Any) -> None:
        """For `adapt`: that many workers fewer; the hub chooses which (the newest)."""
        leaving = {str(name) for name in workers} & self.plan
        await self._scale(len(self.plan) - len(leaving), self.backend)

    @property
    def plan(self) -> set[str]:
        """The names of the workers that should be there, as far as this proxy knows."""
        return self.observed if self._names is None else self._names

    requested = plan

    @property
    def dashboard_link(self) -> str:
        return self.info.dashboard

    def close(self, timeout: float | None = None) -> Any:
        """Closes this proxy; the hub goes on."""
        closed = super().close(timeout)
        if not self.asynchronous:
            self._loop_runner.stop()
        return closed

    def __del__(self, _warn: Any = None) -> None:
        """Nothing to warn of: an unclosed proxy holds no workers."""
