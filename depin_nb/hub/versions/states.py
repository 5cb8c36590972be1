"""The versions of a run's state, one file each: whole before the journal names them, removed after newer ones are committed."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError, HubError
from depin_nb.core.state import State
from depin_nb.hub.records.blobs import write_atomic
from depin_nb.training.merge import OuterState

OUTER_VERSIONS = 3  # one that is being committed, and the one before it
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def checked_run_id(run_id: str) -> str:
    """The id, fit for a path. Raises HubError."""
    if not _RUN_ID.fullmatch(run_id):
        raise HubError(f"{run_id!r} is not a run id")
    return run_id


class StateFiles:
    """`folder`/<run>/v<version>.state, codec `State` bytes. `relative` names in the journal, so that a state folder can be moved."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder

    def path(self, run_id: str, version: int) -> Path:
        return self.folder / checked_run_id(run_id) / f"v{version:06d}.state"

    def name(self, run_id: str, version: int) -> str:
        """The file as the journal names it: relative to the folder that holds journal and states."""
        return str(self.path(run_id, version).relative_to(self.folder.parent))

    def write(self, run_id: str, version: int, data: bytes) -> None:
        path = self.path(run_id, version)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_atomic(path, data)

    def read(self, run_id: str, version: int) -> bytes:
        """Raises HubError when that version isn't kept."""
        try:
            return self.path(run_id, version).read_bytes()
        except FileNotFoundError:
            raise HubError(f"version {version} of {run_id} isn't kept any more") from None

    def load(self, run_id: str, version: int) -> State:
        """That version, opened. Raises HubError when it isn't kept."""
        return State.from_bytes(self.read(run_id, version))

    def size(self, run_id: str, version: int) -> int:
        """Bytes of that version's file, 0 when it isn't kept."""
        path = self.path(run_id, version)
        return path.stat().st_size if path.exists() else 0

    def total(self, run_id: str) -> int:
        """Bytes of all versions that are kept of a run."""
        return sum(path.stat().st_size for path in self.path(run_id, 0).parent.glob("*.state"))

    def write_outer(self, run_id: str, version: int, outer: OuterState) -> None:
        """The outer optimizer's velocity beside the version that it led to; nothing where there is none."""
        if outer.momentum:
            write_atomic(self.path(run_id, version).with_suffix(".outer"), encode(outer.momentum))

    def read_outer(self, run_id: str, version: int) -> OuterState | None:
        """That velocity, None where none is kept."""
        try:
            return OuterState(decode(self.path(run_id, version).with_suffix(".outer").read_bytes()))
        except (FileNotFoundError, CodecError):
            return None

    def runs(self) -> list[str]:
        """The runs of which versions are kept."""
        return [path.name for path in self.folder.iterdir() if path.is_dir()]

    def prune(self, run_id: str, keep: Collection[int]) -> None:
        """Removes all versions of the run but `keep`, and velocities but those of the newest."""
        wanted = {self.path(run_id, version).name for version in keep}
        newest = max(keep, default=0) - OUTER_VERSIONS
        wanted |= {self.path(run_id, version).with_suffix(".outer").name for version in keep if version > newest}
        for path in self.path(run_id, 0).parent.glob("*"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)
