"""Which errors of files and of SQLite say that the disk is full, and which that a file is damaged. Pure but for one look at the disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from .errors import DiskFull

_PRIMARY = 0xFF  # of SQLite's extended result codes (https://www.sqlite.org/rescode.html)
NEARLY_NONE_BYTES = 256 << 10  # free; SQLite says "disk I/O error" where it can't enlarge its shared memory


def is_full(error: BaseException, path: Path) -> bool:
    """Whether `error` came about because nothing more fits onto the disk (or into the quota) that holds `path`."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = _code(error)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return _free_bytes(path) < NEARLY_NONE_BYTES
    return code == sqlite3.SQLITE_FULL


def is_damaged(error: BaseException) -> bool:
    """Whether SQLite says that a file's content is not what it wrote."""
    if isinstance(error, sqlite3.OperationalError) and "Could not decode" in str(error):
        return True
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def disk_full(path: Path) -> DiskFull:
    """The error for a write to `path` that found no room."""
    return DiskFull(f"the disk is full: {path} could not be written", path=str(path))


def _code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    return None if code is None else code & _PRIMARY


def _free_bytes(path: Path) -> int:
    try:
        found = os.statvfs(path if path.exists() else path.parent)
    except OSError:
        return NEARLY_NONE_BYTES
    return found.f_bavail * found.f_frsize
