"""What a run's workers hold (training/downlink.py): made when a worker first asks for a version, in memory only.

A hub that starts anew begins a new reference; workers whose digest doesn't fit it get the version whole, and so does a newcomer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from depin_nb.training.downlink import digest_of, encode_step

if TYPE_CHECKING:
    from depin_nb.core.state import State

MOST_STEPS = 16  # that are kept: a worker further behind gets the version whole
Executed = Callable[..., Any]  # (function, *args) -> awaitable, off the event loop


@dataclass(frozen=True)
class Step:
    """From one reference to the next, each named by version and digest."""

    base: tuple[int, bytes]
    to: tuple[int, bytes]
    data: bytes


@dataclass
class Reference:
    """One run's. `bits`: of its steps; other bits begin a new one."""

    bits: int
    version: int = -1
    state: State | None = None
    digest: bytes = b""
    steps: list[Step] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def advance(self, version: int, newest: State, execute: Executed) -> None:
        """Makes it stand at `version`, which is `newest`; the first time exactly there."""
        async with self.lock:
            if version <= self.version:
                return
            if self.state is None:
                self.digest = await execute(digest_of, newest)
                self.state, self.version = newest, version
                return
            step, state = await execute(self._stepped, self.state, newest, version)
            self.steps.append(step)
            self.state, self.version, self.digest = state, version, step.to[1]
            whole = state.nbytes()
            while len(self.steps) > MOST_STEPS or sum(len(s.data) for s in self.steps) > whole:
                del self.steps[0]

    def _stepped(self, held: State, newest: State, version: int) -> tuple[Step, State]:
        data, state = encode_step(held, newest, bits=self.bits)
        return Step((self.version, self.digest), (version, digest_of(state)), data), state

    def way(self, have: Any, version: int) -> tuple[list[bytes], bytes] | None:
        """`(steps, digest)` that bring a worker to `version` which holds `have` (as it says: version, digest), None if there are none."""
        if not isinstance(have, dict):
            return None
        at: tuple[Any, Any] = (have.get("version"), have.get("digest"))
        found: list[bytes] = []
        for step in self.steps:
            if at[0] != version and step.base == at:
                found.append(step.data)
                at = step.to
        if at[0] == version and (found or at == (self.version, self.digest)):
            return found, at[1]
        return None
