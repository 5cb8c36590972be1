"""Blobs by digest in a worker's memory: checked when they come in, the least used dropped first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from ..core.errors import CodecError

MAX_BYTES = 512 << 20  # a data set's blocks; a device with less memory would say so in its facts


class BlobCache:
    """Keeps at most `max_bytes`; a blob larger than that is passed on but not kept."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._size_bytes = 0

    def get(self, digest: str, fetch: Callable[[], bytes]) -> bytes:
        """The blob, from memory or from `fetch`. Raises CodecError when what came isn't what its digest (sha256, hex) says."""
        if digest in self._blobs:
            self._blobs.move_to_end(digest)
            return self._blobs[digest]
        data = bytes(fetch())
        if hashlib.sha256(data).hexdigest() != digest:
            raise CodecError("a blob is not what its digest says", digest=digest)
        if len(data) <= self._max_bytes:
            self._blobs[digest] = data
            self._size_bytes += len(data)
            while self._size_bytes > self._max_bytes:
                _, dropped = self._blobs.popitem(last=False)
                self._size_bytes -= len(dropped)
        return data
