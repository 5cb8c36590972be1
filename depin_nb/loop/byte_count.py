"""Bytes counted, not kept: what writing would come to."""

from __future__ import annotations

import io
from typing import Any


class ByteCount(io.RawIOBase):
    """A file that drops what is written to it. `nbytes`: how much that was."""

    nbytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.nbytes += size
        return size
