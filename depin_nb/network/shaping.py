"""Simulated links: what a transfer of so many bytes would have to wait on a phone's or a home's connection.

The decision is pure and deterministic (a token bucket in, a token bucket and a wait out); only `Link` waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..ports import Clock, SystemClock

MESSAGE_BYTES = 200  # framing and field names of one message beside its payload
BURST_S = 0.05  # what a link passes at once after it was idle, as seconds at its rate (a router's queue)
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Bucket:
    """A direction of a link. `rate_bytes_s` 0 = unlimited. `level_bytes`: what may pass at once at time `at_s`; below 0 = a debt."""

    rate_bytes_s: float
    burst_bytes: float
    level_bytes: float
    at_s: float = 0.0

    @classmethod
    def of_mbit(cls, mbit_s: float, at_s: float = 0.0) -> Bucket:
        rate = mbit_s * 1e6 / 8
        return cls(rate, rate * BURST_S, rate * BURST_S, at_s)


def take(bucket: Bucket, now_s: float, size_bytes: int) -> tuple[Bucket, float]:
    """The bucket after `size_bytes` were sent at `now_s`, and how long (s) the sender waits until the last byte is through.

    Transfers queue: a later one waits for the earlier ones' bytes too. Time that runs backwards counts as no time.
    """
    if bucket.rate_bytes_s <= 0:
        return bucket, 0.0
    passed_s = max(0.0, now_s - bucket.at_s)
    level = min(bucket.burst_bytes, bucket.level_bytes + passed_s * bucket.rate_bytes_s) - size_bytes
    wait_s = max(0.0, -level / bucket.rate_bytes_s)
    return replace(bucket, level_bytes=level, at_s=max(now_s, bucket.at_s)), wait_s


class Link:
    """Both directions of one device's simulated connection. `latency_s` is a round trip, waited for once an exchange."""

    def __init__(
        self, up_mbit_s: float, down_mbit_s: float, latency_s: float, *, clock: Clock | None = None, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._clock = clock or SystemClock()
        now_s = self._clock.monotonic()
        self._up, self._down = Bucket.of_mbit(up_mbit_s, now_s), Bucket.of_mbit(down_mbit_s, now_s)
        self._latency_s = latency_s
        self._sleep = sleep
        self.bytes_up = 0
        self.bytes_down = 0

    async def up(self, size_bytes: int) -> None:
        """Waits as long as sending takes, the round trip included."""
        self.bytes_up += size_bytes
        self._up, wait_s = take(self._up, self._clock.monotonic(), size_bytes)
        await self._wait(wait_s + self._latency_s)

    async def down(self, size_bytes: int) -> None:
        """Waits as long as receiving takes."""
        self.bytes_down += size_bytes
        self._down, wait_s = take(self._down, self._clock.monotonic(), size_bytes)
        await self._wait(wait_s)

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)


def size_of(message: Any) -> int:
    """The bytes that a message counts for: its payloads' lengths and a little for the rest."""
    return MESSAGE_BYTES + _payload(message)


def _payload(value: Any) -> int:
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    if isinstance(value, memoryview):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_payload(k) + _payload(v) for k, v in value.items())
    if isinstance(value, Sequence):
        return sum(_payload(v) for v in value)
    return 8
