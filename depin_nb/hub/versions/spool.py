"""Accepted changes, as they came, until their merge: in memory up to a bound, beyond it in a file without a name that goes with the hub."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from threading import RLock

from depin_nb.core.parts import Buffer
from depin_nb.core.state import State

from .mapped import Mapped

log = logging.getLogger(__name__)
MEMORY_BYTES = 8 << 20  # of all changes that wait in memory
MAPPED_FROM_BYTES = 1 << 20
SEGMENT_BYTES = 64 << 20  # of one file; it goes when the last change in it is merged


class Held:
    """One change that waits. Dropping the last reference gives its memory or its place in the file back."""

    def __init__(self, data: Buffer, segment: _Segment | None = None, offset: int = 0) -> None:
        self.nbytes = len(data)
        self._segment, self._offset = segment, offset
        self._data = bytearray(data) if segment is None else None

    @property
    def in_memory(self) -> bool:
        return self._data is not None

    def open(self) -> tuple[memoryview, Mapped | None]:
        """`(bytes, what maps them)`: writable memory that the hub alone writes; mapped where the change lies in a file."""
        if self._data is not None:
            return memoryview(self._data), None
        assert self._segment is not None
        if self.nbytes < MAPPED_FROM_BYTES:  # reading takes less than the page faults would
            return memoryview(self._segment.read(self.nbytes, self._offset)), None
        mapped = Mapped(self._segment.descriptor, self.nbytes, self._offset)
        return mapped.view, mapped


class Spool:
    """`folder`: on which disk. A change that finds no room there stays in memory: the merge, which needs room too, says what is wrong."""

    def __init__(self, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self._folder, self._memory_bytes = folder, memory_bytes
        self._lock = RLock()  # again by the same thread: a change may be dropped while it is held
        self._in_memory = 0
        self._segment: _Segment | None = None

    def put(self, data: Buffer) -> Held:
        """Keeps a change until what is returned is dropped."""
        with self._lock:
            spilled = self._in_memory + len(data) > self._memory_bytes
            place = self._reserved(len(data)) if spilled else None
        if place is not None:
            segment, offset = place
            try:
                segment.write(data, offset)
                return Held(data, segment, offset)
            except OSError as error:
                log.warning("a change waits in memory, since it can't be written: %s", error)
        held = Held(data)
        with self._lock:
            self._in_memory += held.nbytes
        weakref.finalize(held, self._dropped, held.nbytes).atexit = False
        return held

    def in_file(self, state: State) -> tuple[State, Mapped | None]:
        """The same state in a file without a name, which goes with its last tensor; as it is where it is small or there is no room."""
        if state.nbytes() < MAPPED_FROM_BYTES:
            return state, None
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                nbytes = sum(file.write(part) for part in state.to_parts())
                file.flush()
                mapped = Mapped(file.fileno(), nbytes)
        except OSError as error:
            log.warning("a state stays in memory, since it can't be written: %s", error)
            return state, None
        return State.from_bytes(mapped.view, share=True), mapped

    def _dropped(self, nbytes: int) -> None:
        with self._lock:
            self._in_memory -= nbytes

    def _reserved(self, nbytes: int) -> tuple[_Segment, int] | None:
        """A place for that many bytes."""
        if not nbytes:
            return None
        if self._segment is None or self._segment.end >= SEGMENT_BYTES:
            try:
                self._segment = _Segment(self._folder)
            except OSError as error:
                log.warning("changes wait in memory, since no file can be made in %s: %s", self._folder, error)
                return None
        return self._segment, self._segment.reserve(nbytes)


class _Segment:
    """A file without a name (O_TMPFILE where there is such a thing): the system removes it with the last who has it open."""

    def __init__(self, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        self.end = 0

    def reserve(self, nbytes: int) -> int:
        """Where that many bytes go."""
        offset = self.end
        self.end += -(-nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return offset

    def write(self, data: Buffer, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written

    def read(self, nbytes: int, offset: int) -> bytearray:
        data = bytearray(nbytes)
        view = memoryview(data)
        while view:
            read = os.preadv(self.descriptor, [view], offset)
            if not read:
                raise OSError(errno.EIO, "the file of waiting changes was cut short")
            view, offset = view[read:], offset + read
        return data
