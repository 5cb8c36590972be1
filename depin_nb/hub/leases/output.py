"""What a whole cell says on its worker, on its way to the notebook: in order, counted, bounded."""

from __future__ import annotations

from collections import deque

MAX_WAITING_BYTES = 4 << 20  # taken from the worker and not yet fetched by the kernel
MAX_CHUNK_BYTES = 256 << 10
MAX_TOTAL_BYTES = 256 << 20  # of one entry: nobody reads more


class Output:
    """Chunks by number, from 0. Opaque bytes (codec [channel, payload]); what finds no room is left out and counted."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._bytes = self._total = 0
        self.count = 0
        self.left_out = 0

    def add(self, data: bytes) -> bool:
        """False when there was no room for it."""
        if len(data) > MAX_CHUNK_BYTES or self._bytes + len(data) > MAX_WAITING_BYTES or self._total + len(data) > MAX_TOTAL_BYTES:
            self.left_out += 1
            return False
        self._waiting.append((self.count, data))
        self.count += 1
        self._bytes += len(data)
        self._total += len(data)
        return True

    def after(self, number: int) -> list[bytes]:
        """Chunks from `number` on; earlier ones have arrived and are forgotten."""
        while self._waiting and self._waiting[0][0] < number:
            self._bytes -= len(self._waiting.popleft()[1])
        return [data for _, data in self._waiting]
