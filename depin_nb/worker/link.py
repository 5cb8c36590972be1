"""A worker's calls to its hub, over its (possibly *simulated*) link, from the event loop and from the thread that computes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any

from distributed.core import rpc

from ..core.errors import HubDied
from ..core.parts import WHOLE_BYTES, part_bytes
from ..hub.client import typed
from ..network import frames
from ..network.shaping import Link, size_of
from ..ports import Clock, SystemClock
from .gauge import Gauge

TRANSFERS = ("depin_report", "depin_version", "depin_blob", "depin_part", "depin_put")  # ops of which the hub answers as soon as it can
LINK_BYTES = 128 << 10
LINK_COUNTS = (4, 16)  # so many at once; more where the first were through too soon to tell
_STEP_S = 0.1
_FASTEST_S = 1e-4  # what the clock and the event loop can tell apart
_SURE_S = 0.02
PEER_S = 60.0  # for one part


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
    """The `depin_*` operations as this worker calls them. Made on the event loop that the calls run on.

    What is longer than `whole_bytes` travels in parts of `up_part_bytes` or `down_part_bytes`, by this link's rate once it is measured.
    """

    whole_bytes = up_part_bytes = down_part_bytes = WHOLE_BYTES
    life = ""  # of the hub that was joined: another one may listen where it did

    def __init__(self, scheduler: str, worker: str, link: Link, *, clock: Clock | None = None) -> None:
        self.worker = worker
        self._clock = clock or SystemClock()
        frames.register()
        self._rpc = rpc(scheduler)
        self._link = link
        self._gauge = Gauge()
        self._loop = asyncio.get_running_loop()

    async def call(self, op: str, *, shaped: bool = True, **request: Any) -> Any:
        """The hub's answer. Raises its errors by their types, and HubDied when the connection is lost. `shaped=False`: a few bytes of
        control that don't queue behind a transfer."""
        start_s = self._clock.monotonic()
        try:
            if shaped:
                await self._link.up(size_of(request))
            answer = await getattr(self._rpc, op)(worker=self.worker, **frames.beside(request))
            if shaped:
                await self._link.down(size_of(answer))
            if op in TRANSFERS:
                self._gauge.passed(size_of(request), size_of(answer), self._clock.monotonic() - start_s)
        except OSError as error:
            raise HubDied(f"the hub does not answer ({op}: {error})") from None
        if not isinstance(answer, dict):
            return answer
        refusal = typed(answer["error"]) if isinstance(answer.get("error"), dict) else None
        hub = refusal.fields.get("hub") if refusal is not None else answer.get("hub")
        if self.life and hub and hub != self.life:
            raise HubDied(f"another hub is there, which hasn't been joined yet ({op})")
        if refusal is not None:
            raise refusal
        return answer

    def ask(self, op: str, go: Go, **request: Any) -> Any:
        """As `call`, from another thread. Raises Dropped as soon as `go` says stop."""
        return self._wait_for(self.call(op, **request), op, go)

    def ask_peer(self, address: str, op: str, go: Go, **request: Any) -> Any:
        """As `ask`, another worker."""
        return self._wait_for(self._of_peer(address, op, request), op, go)

    async def _of_peer(self, address: str, op: str, request: dict[str, Any]) -> Any:
        peer = self.peer(address)
        try:
            return await peer.call(op, **request)
        finally:
            await peer.close()

    def _wait_for(self, call: Coroutine[Any, Any, Any], op: str, go: Go) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(call, self._loop)
        while True:
            if not go():
                future.cancel()
                raise Dropped
            with suppress(FutureTimeout):
                return future.result(_STEP_S)
            if future.done():  # it ended with a TimeoutError of its own
                raise HubDied(f"the hub does not answer ({op}: timed out)")

    async def measured(self) -> dict[str, float]:
        """What this link carries: `up_mbit_s`, `down_mbit_s`, `latency_ms` of a round trip. Moves half a MiB each way, on fast links 2."""
        start_s = self._clock.monotonic()
        latency_s = await self._ended_s() - start_s
        filler = os.urandom(LINK_BYTES)  # what can't be compressed on its way
        up, down = await self._rate(data=filler), await self._rate(want=LINK_BYTES)
        latency_ms = 1e3 * max(latency_s, _FASTEST_S)
        self.up_part_bytes, self.down_part_bytes = part_bytes(up * 8e-6, latency_ms), part_bytes(down * 8e-6, latency_ms)
        found = {"up_mbit_s": up * 8e-6, "down_mbit_s": down * 8e-6, "latency_ms": latency_ms}
        self._gauge.measured(found, self._clock.monotonic())
        return found

    async def changed(self) -> dict[str, float] | None:
        """The link measured anew where transfers were far from what they should have taken, else None."""
        return await self.measured() if self._gauge.doubted(self._clock.monotonic()) else None

    async def _rate(self, **request: Any) -> float:
        """Bytes/s one way. Transfers that begin together end one after the other: by then neither what a router takes at once nor the
        round trip counts, only the rate."""
        rate = 0.0
        for count in LINK_COUNTS:
            ends = sorted(await asyncio.gather(*(self._ended_s(**request) for _ in range(count))))
            half = count // 2
            took_s = max(ends[-1] - ends[half], _FASTEST_S)
            rate = LINK_BYTES * (count - 1 - half) / took_s
            if took_s > _SURE_S:
                break
        return rate

    async def _ended_s(self, **request: Any) -> float:
        await self.call("depin_link", **request)
        return self._clock.monotonic()

    def peer(self, address: str) -> HubLink:
        """Calls to another worker, over the same link of this one."""
        peer = PeerLink(address, self.worker, self._link, clock=self._clock)
        peer.whole_bytes, peer.up_part_bytes, peer.down_part_bytes = self.whole_bytes, self.up_part_bytes, self.down_part_bytes
        return peer

    async def close(self) -> None:
        await self._rpc.close_rpc()


class PeerLink(HubLink):
    """Calls to another worker: one that doesn't answer within PEER_S counts as gone."""

    async def call(self, op: str, *, shaped: bool = True, **request: Any) -> Any:
        try:
            return await asyncio.wait_for(super().call(op, shaped=shaped, **request), PEER_S)
        except TimeoutError:
            raise HubDied(f"{op}: no answer within {PEER_S:g} s") from None
