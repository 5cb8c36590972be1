"""The worker processes that a hub of this state folder started, written down: the next hub takes them over, or `down` ends them. Light.

A process is known by its id, its name on its command line and about when it began: one that has the same id by now isn't taken for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ..core import config
from .detached.folder import DetachedFolder

CLOCK_S = 5.0  # the system tells it by the wall clock, which may be set a little meanwhile
DETACHED_END_S = 12.0  # and one of a detached run to write its results
END_S = 5.0  # what a process gets to leave in order before it is killed


@dataclass(frozen=True)
class Known:
    """A worker process. `began_at`: wall time in seconds, as the system tells it."""

    name: str
    backend: str
    profile: str
    pid: int
    began_at: float

    def process(self) -> psutil.Process | None:
        """It, as long as it lives."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.began_at) < CLOCK_S and self.name in found.cmdline()
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def began_at(pid: int) -> float:
    """When that process began; 0 when it is gone already."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _file() -> Path:
    return config.home() / "workers.json"


def write(known: Iterable[Known]) -> None:
    """In one step, readable by this user only."""
    path = _file()
    rows = [asdict(k) for k in known]
    if not rows:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(rows, file, indent=1)
    os.replace(temporary, path)


def read() -> list[Known]:
    """Those that were written down and still live; none where the file can't be understood."""
    try:
        rows = json.loads(_file().read_text())
        found = [Known(str(r["name"]), str(r["backend"]), str(r["profile"]), int(r["pid"]), float(r["began_at"])) for r in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [known for known in found if known.process() is not None]


def add(known: Known) -> None:
    """One more: at once, for its hub may be killed in the next moment."""
    write([*read(), known])


def end_left() -> int:
    """Ends what a killed hub has left and no other one has taken over: workers, and the processes of detached runs, which first write what
    they have. Returns how many there were."""
    left = [process for known in read() if (process := known.process()) is not None]
    detached = [psutil.Process(pid) for folder in DetachedFolder.all() if (pid := folder.pid()) is not None]
    for process in [*left, *detached]:
        _tell(process.terminate)
    _, alive = psutil.wait_procs([*left, *detached], timeout=DETACHED_END_S if detached else END_S)
    for process in alive:
        _tell(process.kill)
    psutil.wait_procs(alive, timeout=END_S)
    write(())
    return len(left) + len(detached)


def _tell(signal: Callable[[], object]) -> None:
    with suppress(psutil.Error):
        signal()
