"""Large files as memory: the system reads a page when it is touched, and `release` gives the pages back."""

from __future__ import annotations

import mmap
from weakref import WeakSet

SINCE_BYTES = 4 << 20  # of mapped memory that are touched before they are given back


class Mapped:
    """`nbytes` bytes of an open file from `offset` on, a multiple of mmap.ALLOCATIONGRANULARITY.

    `view` is writable because torch wants that; nobody writes to it, and nothing that is written would reach the file. It stays as long as
    a tensor lies in it, also when the file is closed and removed; touching what a file that was cut short has lost ends the process.
    """

    def __init__(self, descriptor: int, nbytes: int, offset: int = 0) -> None:
        self._map = mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_COPY, offset=offset)
        self.view = memoryview(self._map)

    def release(self) -> None:
        """Lets the system take the memory; what is touched again is read again."""
        self._map.madvise(mmap.MADV_DONTNEED)


class Relief:
    """Releases what is added whenever another SINCE_BYTES of it have been touched. Calls may come from any one thread."""

    def __init__(self) -> None:
        self._mapped: WeakSet[Mapped] = WeakSet()
        self._touched_bytes = 0

    def add(self, mapped: Mapped | None) -> None:
        if mapped is not None:
            self._mapped.add(mapped)

    def __call__(self, nbytes: int) -> None:
        self._touched_bytes += nbytes
        if self._touched_bytes >= SINCE_BYTES:
            self.now()

    def now(self) -> None:
        self._touched_bytes = 0
        for mapped in self._mapped:
            mapped.release()
