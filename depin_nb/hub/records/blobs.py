"""Bytes by their sha256, in files. What a kernel ships (programs, data blocks) and workers fetch; the hub never opens it."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from depin_nb.core.errors import HubError
from depin_nb.core.storage import disk_full, is_full

_DIGEST = re.compile(r"[0-9a-f]{64}")
KEEP_UNUSED_S = 7 * 86400.0


def write_atomic(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """`path` holds all of `data` (or of its pieces) or what it held before, also when the machine stops in between.

    Raises DiskFull, or OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in (data,) if isinstance(data, bytes) else data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and is_full(error, path):
            raise disk_full(path) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class BlobStore:
    """A folder of blobs, shared by all runs: the same bytes are shipped once. What no run asked for in a week goes at the hub's start."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where it is, or would be. Raises HubError."""
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise HubError("that is not a blob's digest (64 hexadecimal digits)")
        return self.folder / digest

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of `digests` that must still be put, without repetition."""
        lacking = []
        for digest in dict.fromkeys(digests):
            path = self.path(digest)
            if path.exists():
                os.utime(path)
            else:
                lacking.append(digest)
        return lacking

    def put(self, data: bytes) -> str:
        """Keeps `data`; returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            write_atomic(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes. Raises HubError when they aren't here."""
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError:
            raise HubError(
                f"the hub has no blob {digest[:12]}...", hint="Run the cell again: what it needs is then shipped anew."
            ) from None

    def size(self, digest: str) -> int:
        path = self.path(digest)
        return path.stat().st_size if path.exists() else 0

    def prune(self, unused_s: float = KEEP_UNUSED_S) -> None:
        """Removes blobs that weren't asked for within `unused_s`, and what a killed write left."""
        oldest = time.time() - unused_s
        for path in self.folder.iterdir():
            if path.stat().st_mtime < oldest or path.name.endswith(".tmp"):
                path.unlink(missing_ok=True)
