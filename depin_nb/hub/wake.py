"""Waking those who wait for something to change, without polling."""

from __future__ import annotations

import asyncio


class Signal:
    """`notify()` wakes everyone who waits at that moment. One event loop only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """True when notified, False when `timeout_s` went by first."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
