"""Which hub runs in a state folder: `hub.json` says where it listens, a file lock says that it lives. Light: no torch, no distributed."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType

from ..core import config
from ..core.errors import HubError


@dataclass(frozen=True)
class HubInfo:
    """Where a hub listens: Dask's addresses (`scheduler`, `dashboard`) and the status API (`status_url` with `status_token`).

    `home`: its state folder; `started_at`: wall time in seconds; `pid`: its process.
    """

    hub_id: str
    scheduler: str
    dashboard: str
    status_url: str
    status_token: str = field(repr=False)
    pid: int
    version: str
    home: str
    started_at: float

    def write(self) -> None:
        """Writes hub.json, readable by this user only, in one step."""
        path = config.hub_file()
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file, indent=1)
        os.replace(temporary, path)

    @classmethod
    def read(cls) -> HubInfo | None:
        """What hub.json says, None where there is none or it can't be understood. Doesn't tell whether that hub lives."""
        try:
            data = json.loads(config.hub_file().read_text())
            return cls(**{f.name: data[f.name] for f in fields(cls)})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def lock_file() -> Path:
    return config.home() / "hub.lock"


def last_file() -> Path:
    """hub.json of a hub that was killed."""
    return config.home() / "hub.last.json"


def last_port() -> int:
    """Where the scheduler of the killed hub listened: its workers dial there first. 0 when there was none."""
    try:
        port = json.loads(last_file().read_text())["scheduler"].rpartition(":")[2]
        return int(port)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def log_file() -> Path:
    return config.home() / "hub.log"


class FileLock:
    """An exclusive `flock` on a file, held until `release` or the end of the process. As a context manager it waits for its turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Whether the lock is now held here. With `wait`, always (signals interrupt the wait)."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def write(self, text: str) -> None:
        """Replaces the held file's content."""
        assert self._descriptor is not None, "not held"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        self.acquire(wait=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def hub_pid() -> int | None:
    """The process that holds this state folder as its hub (0: just starting), None without one.

    A killed hub's lock is gone with it, whatever its pid does now.
    """
    try:
        descriptor = os.open(lock_file(), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HubError(f"{lock_file()} can't be opened: {error.strerror}", hint="Check the rights of DEPIN_HOME.") from None
    try:
        # shared, so that two who look at once don't take each other for a hub
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0)
        return int(text) if text.strip().isdigit() else 0
    finally:
        os.close(descriptor)


def hold_home() -> FileLock | None:
    """Makes this process the hub of its state folder, or None when another one is. A killed hub's hub.json counts no more."""
    lock = FileLock(lock_file())
    for _ in range(20):
        if lock.acquire():
            break
        time.sleep(0.05)  # somebody who only looks holds the lock for microseconds
    else:
        return None
    with suppress(FileNotFoundError):
        os.replace(config.hub_file(), last_file())
    lock.write(str(os.getpid()))
    return lock
