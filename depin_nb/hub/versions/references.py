"""What a run's workers hold (training/downlink.py): made when a worker first asks for a version, in memory and files without names only.

A hub that starts anew begins a new reference; workers whose digest doesn't fit it get the version whole, and so does a newcomer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from depin_nb.core.state import State
from depin_nb.training.downlink import digest_of, step_from

from .mapped import Mapped, Relief
from .spool import Spool

STEPS_SHARE = 0.5  # of a model's size: what all steps that are kept take at most
SHARED_BYTES = 1 << 20  # a whole reference up to this size is encoded once for all who ask for it
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
    """One run's. `bits`: of its steps; other bits begin a new one. `spool`: where it lies when it is large."""

    bits: int
    spool: Spool
    version: int = -1
    state: State | None = None
    digest: bytes = b""
    steps: list[Step] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    whole: bytes | None = None
    mapped: Mapped | None = None

    async def advance(self, version: int, newest: State, execute: Executed) -> None:
        """Makes it stand at `version`, which is `newest`; the first time exactly there."""
        async with self.lock:
            if version <= self.version:
                return
            if self.state is None:
                self.digest = await execute(self._digest, newest)
                self.state, self.version = newest, version
                return
            # its tensors are given away: where nobody else has them, the old and the new reference are never there at once
            held = State(dict(self.state.tensors), self.state.kinds, self.state.plain)
            self.state = self.whole = None
            try:
                step, self.state = await execute(self._stepped, held, newest, version)
            except BaseException:
                self.steps, self.version = [], -1  # it begins anew
                raise
            self.steps.append(step)
            self.version, self.digest = version, step.to[1]
            most = STEPS_SHARE * self.state.nbytes()
            while len(self.steps) > MOST_STEPS or sum(len(s.data) for s in self.steps) > most:
                del self.steps[0]

    def _stepped(self, held: State, newest: State, version: int) -> tuple[Step, State]:
        relief = Relief()
        relief.add(getattr(newest, "mapped", None))
        relief.add(self.mapped)
        data, state = step_from(held, newest, bits=self.bits, touched=relief)
        step = Step((self.version, self.digest), (version, digest_of(state)), data)
        state, self.mapped = self.spool.in_file(state)
        relief.now()
        return step, state

    @staticmethod
    def _digest(newest: State) -> bytes:
        relief = Relief()
        relief.add(getattr(newest, "mapped", None))
        digest = digest_of(newest, relief)
        relief.now()
        return digest

    async def to_bytes(self, execute: Executed) -> bytes:
        """The reference whole."""
        assert self.state is not None
        if self.whole is not None:
            return self.whole
        state = self.state
        data: bytes = await execute(state.to_bytes)
        if len(data) <= SHARED_BYTES and self.state is state:
            self.whole = data
        return data

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
