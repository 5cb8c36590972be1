"""A detached run's own folder in the state folder, for hub, kernel and its process. Files of this user alone (0600 in 0700). Light."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from depin_nb.core import config
from depin_nb.core.errors import NoSuchRun
from depin_nb.hub.info import FileLock

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Outcome:
    """How a detached run's process came to its end, as it says itself. `sha256`: of the results' file, "" when there are none.

    `state`: one of core.status.ENDED. `kind`, `message`, `trace`: the exception that ended it, if one did.
    """

    state: str
    sha256: str = ""
    kind: str = ""
    message: str = ""
    trace: str = ""


@dataclass(frozen=True)
class DetachedFolder:
    """`DEPIN_HOME/detached/<run>`: the captured names until the process has opened them, its log, its results, how it ended."""

    run_id: str

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise NoSuchRun(f"{self.run_id!r} is not a run id", run_id=self.run_id)

    @property
    def path(self) -> Path:
        return config.home() / "detached" / self.run_id

    @property
    def capture(self) -> Path:
        return self.path / "capture"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def lock(self) -> FileLock:
        """Held by the run's process as long as it lives."""
        return FileLock(self.path / "lock")

    def exists(self) -> bool:
        return self.path.is_dir()

    def make(self) -> None:
        self.path.parent.mkdir(exist_ok=True, mode=0o700)
        self.path.mkdir(exist_ok=True, mode=0o700)
        os.close(os.open(self.log, os.O_CREAT | os.O_WRONLY, 0o600))

    def write(self, path: Path, data: bytes) -> None:
        """Whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def end(self, outcome: Outcome) -> None:
        self.write(self.path / "outcome", json.dumps(asdict(outcome)).encode())

    def outcome(self) -> Outcome | None:
        """None while the process works, and for good where it was killed."""
        try:
            data = json.loads((self.path / "outcome").read_bytes())
            return Outcome(**{f.name: str(data[f.name]) for f in fields(Outcome)})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return Outcome("failed", message="what it left can't be read")

    def pid(self) -> int | None:
        """The process that holds the folder, None when none does."""
        if not self.alive():
            return None
        text = (self.path / "lock").read_text()
        return int(text) if text.strip().isdigit() else None

    @classmethod
    def all(cls) -> list[DetachedFolder]:
        found = config.home() / "detached"
        return [cls(path.name) for path in sorted(found.iterdir())] if found.is_dir() else []

    def alive(self) -> bool:
        """Whether its process holds the folder."""
        if not self.exists():
            return False
        lock = self.lock
        if not lock.acquire():
            return True
        lock.release()
        return False
