"""The hub's process: one Dask cluster, the coordinator beside its scheduler, the status API, and the order in which they start and end."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from depin_nb.hub.build import Parts, build
from depin_nb.hub.coordinator import Coordinator
from depin_nb.hub.detached.runs import Detached
from depin_nb.hub.fleet import Fleet
from depin_nb.hub.info import HubInfo, last_file, last_port
from depin_nb.hub.plugin import CoordinatorPlugin, answering
from depin_nb.hub.status_api import StatusApi

from ..backends.local import LocalBackend
from ..backends.simulated import SimulatedBackend
from ..core import config
from ..core.amount import Amount
from ..ports import Backend

log = logging.getLogger(__name__)

IDLE_CHECK_S = 5.0
MAX_NOTICES = 50
VERSIONS = ("torch", "numpy", "distributed", "cloudpickle", "msgpack")


def run(ready: Callable[[HubInfo], None], *, host: str, idle_timeout_s: float | None, user_budget: Amount | None = None) -> None:
    """Runs the hub of this state folder, whose lock the caller holds, until it is told to end; calls `ready` once everything answers."""

    async def main() -> None:
        await Hub(host=host, idle_timeout_s=idle_timeout_s, user_budget=user_budget).run(ready)

    asyncio.run(main())


class Hub:
    """Owns the parts of one hub and their lifetimes; decides nothing about runs."""

    def __init__(self, *, host: str, idle_timeout_s: float | None, user_budget: Amount | None = None) -> None:
        self.hub_id = secrets.token_hex(3)
        self.backends: dict[str, Backend] = {b.name: b for b in (LocalBackend(), SimulatedBackend())}
        self.fleet = Fleet(self.backends, host=host, port=last_port(), notice=self._notice)
        self.api = StatusApi(self, host=host)
        self.info: HubInfo | None = None
        self._host = host
        self._idle_timeout_s = idle_timeout_s
        self._user_budget = user_budget
        self._parts: Parts | None = None
        self._plugin: CoordinatorPlugin | None = None
        self._detached: Detached | None = None
        self._notices: deque[dict[str, Any]] = deque(maxlen=MAX_NOTICES)
        self._ending = asyncio.Event()
        self._seen_s = time.monotonic()

    async def run(self, ready: Callable[[HubInfo], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.shut_down)
        try:
            await self._start()
            assert self.info is not None
            self.info.write()
            log.info("hub %s is ready: %s", self.hub_id, self.info)
            ready(self.info)
            await self._until_end()
        finally:
            config.hub_file().unlink(missing_ok=True)
            last_file().unlink(missing_ok=True)
            await self._stop()
            log.info("hub %s has ended", self.hub_id)

    async def _start(self) -> None:
        self._parts = build(config.home(), self._user_budget)
        await self._parts.coordinator.recover()
        await self.fleet
        handlers = self.fleet.scheduler.handlers
        self._plugin = CoordinatorPlugin(self._parts.coordinator)
        self.fleet.scheduler.add_plugin(self._plugin)
        await self._plugin.start(self.fleet.scheduler)
        self._detached = Detached(self._parts.coordinator)
        operations: dict[str, Callable[..., Any]] = {
            "hub": self.describe,
            "scale": self.scale,
            "shutdown": self.shutdown,
            "detach": self._detached.detach,
            "describe": self._detached.describe,
        }
        for op, method in operations.items():
            handlers[f"depin_{op}"] = answering(method)
        adopted = await self.fleet.adopt()
        adopted += self._detached.adopt()
        if adopted:
            log.info("of the hub that was killed live on: %s", ", ".join(adopted))
        await self.api.start()
        self.info = HubInfo(
            hub_id=self.hub_id,
            scheduler=self.fleet.scheduler.address,
            dashboard=self._dashboard(),
            status_url=self.api.url,
            status_token=self.api.token,
            pid=os.getpid(),
            version=version("depin-nb"),
            home=str(config.home()),
            started_at=time.time(),
        )

    async def _stop(self) -> None:
        """Runs end and settle first, while their workers are still there; then workers, scheduler and files."""
        await self.api.close()
        if self._detached is not None:
            await self._detached.close()
        if self._parts is not None:
            await self._parts.coordinator.close()
        await self.fleet.close()
        if self._plugin is not None:
            await self._plugin.close()
        if self._parts is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._parts.close)

    async def _until_end(self) -> None:
        check_s = min(IDLE_CHECK_S, self._idle_timeout_s or IDLE_CHECK_S)
        while not self._ending.is_set():
            try:
                await asyncio.wait_for(self._ending.wait(), check_s)
            except TimeoutError:
                if self._busy():
                    self._seen_s = time.monotonic()
                elif self._idle_timeout_s is not None and time.monotonic() - self._seen_s > self._idle_timeout_s:
                    log.info("nobody was here for %.0f s: the hub ends", self._idle_timeout_s)
                    return

    def _busy(self) -> bool:
        return (
            bool(self.coordinator.runs)
            or (self._detached is not None and self._detached.busy)
            or bool(self.fleet.scheduler.clients.keys() - {"fire-and-forget"})
        )

    @property
    def coordinator(self) -> Coordinator:
        assert self._parts is not None, "not started"
        return self._parts.coordinator

    def _dashboard(self) -> str:
        port = self.fleet.scheduler.http_server.port if self.fleet.scheduler.http_server else None
        return f"http://{self._host}:{port}/status" if port else ""

    def _notice(self, text: str) -> None:
        log.warning("%s", text)
        self._notices.append({"at": time.time(), "text": text})

    # --- operations ------------------------------------------------------------------------------

    async def describe(self) -> dict[str, Any]:
        """`depin_hub`: who this hub is. Being asked keeps it from ending as idle."""
        self._seen_s = time.monotonic()
        return self._hub()

    async def scale(self, count: int, backend: str) -> dict[str, Any]:
        """`depin_scale`: makes `count` workers of `backend`; answers their names once their processes run."""
        self._seen_s = time.monotonic()
        return {"workers": await self.fleet.scale_to(int(count), str(backend)), "backend": backend}

    async def shutdown(self) -> dict[str, Any]:
        """`depin_shutdown`: ends the hub after this answer."""
        asyncio.get_running_loop().call_later(0.05, self.shut_down)
        return {}

    # --- what the status API shows and steers -------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        return {"hub": self._hub(), **self.coordinator.shared.status()}

    async def control(self, run: str, action: str, value: Any) -> dict[str, Any]:
        answer = await self.coordinator.shared.control(run, action, value)
        return dict(answer["status"])

    def shut_down(self) -> None:
        self._ending.set()

    def _hub(self) -> dict[str, Any]:
        assert self.info is not None
        return {
            "id": self.hub_id,
            "pid": self.info.pid,
            "home": self.info.home,
            "version": self.info.version,
            "scheduler": self.info.scheduler,
            "dashboard": self.info.dashboard,
            "started_at": self.info.started_at,
            "backends": [{"name": b.name, "simulated": b.simulated, "workers": self.fleet.names(b.name)} for b in self.backends.values()],
            "workers": self._workers(),
            "notices": list(self._notices),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        }

    def _workers(self) -> list[dict[str, Any]]:
        """The worker processes: what was started, and whether it has reached the scheduler."""
        processes = self.fleet.processes
        here = {str(ws.name): ws.address for ws in self.fleet.scheduler.workers.values()}
        return [
            {"name": name, "backend": p.backend.name, "simulated": p.backend.simulated, "profile": p.spec.profile, "pid": p.pid,
             "address": here.get(name, ""), "ready": name in here}
            for name in self.fleet.names()
            if (p := processes.get(name)) is not None
        ]  # fmt: skip
