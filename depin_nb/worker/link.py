"""A worker's calls to its hub, over its (possibly *simulated*) link, from the event loop and from the thread that computes."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any

from distributed.core import rpc

from ..core.errors import HubDied
from ..hub.client import typed
from ..network.shaping import Link, size_of

_STEP_S = 0.1


class Dropped(Exception):
    """The lease isn't wanted any more: whatever is under way for it ends here. Never leaves the worker."""


class Go:
    """Whether a lease is still wanted. Set once, from any thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def __call__(self) -> bool:
        return not self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Waits so long, or until the lease isn't wanted."""
        self._stop.wait(seconds)


class HubLink:
    """The `depin_*` operations as this worker calls them. Made on the event loop that the calls run on."""

    def __init__(self, scheduler: str, worker: str, link: Link) -> None:
        self.worker = worker
        self._rpc = rpc(scheduler)
        self._link = link
        self._loop = asyncio.get_running_loop()

    async def call(self, op: str, *, shaped: bool = True, **request: Any) -> Any:
        """The hub's answer. Raises its errors by their types, and HubDied when the connection is lost. `shaped=False`: a few bytes of
        control that don't queue behind a transfer."""
        try:
            if shaped:
                await self._link.up(size_of(request))
            answer = await getattr(self._rpc, op)(worker=self.worker, **request)
            if shaped:
                await self._link.down(size_of(answer))
        except OSError as error:
            raise HubDied(f"the hub does not answer ({op}: {error})") from None
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise typed(answer["error"])
        return answer

    def ask(self, op: str, go: Go, **request: Any) -> Any:
        """As `call`, from another thread. Raises Dropped as soon as `go` says stop."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(self.call(op, **request), self._loop)
        while True:
            if not go():
                future.cancel()
                raise Dropped
            with suppress(FutureTimeout):
                return future.result(_STEP_S)
            if future.done():  # it ended with a TimeoutError of its own
                raise HubDied(f"the hub does not answer ({op}: timed out)")

    async def close(self) -> None:
        await self._rpc.close_rpc()
