"""A file that becomes whole by parts: appended to at its end only, and not used before its digest is right. Calls that block."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

from .errors import CodecError
from .parts import Announced, Buffer
from .storage import disk_full, is_full


def append(path: Path, offset: int, data: Buffer, *, siblings: str, keep: int) -> int:
    """Adds what of `data`, which begins at `offset`, isn't in the file yet; returns the file's size. Safe to repeat, also at once: bytes
    that are there are never written again, and there are no holes. When the file is new, of the others that the glob `siblings` finds
    beside it the oldest go, so that with it at most `keep` are left. Raises DiskFull, or OSError."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            others = sorted(path.parent.glob(siblings), key=lambda each: each.stat().st_mtime)
            for old in others[: max(0, len(others) - keep + 1)]:
                old.unlink(missing_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            have = os.fstat(file).st_size
            view = memoryview(data).cast("B")[have - offset :] if offset <= have else memoryview(b"")
            while view:
                written = os.pwrite(file, view, have)
                have, view = have + written, view[written:]
            return have
        finally:
            os.close(file)
    except OSError as error:
        if is_full(error, path):
            raise disk_full(path) from error
        raise


def whole(path: Path, what: Announced) -> Buffer:
    """The file's content, read as it is used (the file may be removed meanwhile). Raises CodecError when it isn't what was announced."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != what.size_bytes:
                raise CodecError("a change was reported before all of its parts were here")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if what.size_bytes else memoryview(b"")
    except FileNotFoundError:
        raise CodecError("a change was reported before all of its parts were here") from None
    if hashlib.sha256(view).hexdigest() != what.digest:
        path.unlink(missing_ok=True)
        raise CodecError("the parts of a change don't make what its digest says")
    return view
