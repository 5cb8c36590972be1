"""The versions of a run's state, one file each: whole before the journal names them, removed after newer ones are committed."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from depin_nb.core.errors import HubError

from .blobs import write_atomic

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StateFiles:
    """`folder`/<run>/v<version>.state, codec `State` bytes. `relative` names in the journal, so that a state folder can be moved."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder

    def path(self, run_id: str, version: int) -> Path:
        if not _RUN_ID.fullmatch(run_id):
            raise HubError(f"{run_id!r} is not a run id")
        return self.folder / run_id / f"v{version:06d}.state"

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

    def prune(self, run_id: str, keep: Collection[int]) -> None:
        """Removes all versions of the run but `keep`."""
        wanted = {self.path(run_id, version).name for version in keep}
        for path in self.path(run_id, 0).parent.glob("*"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)
