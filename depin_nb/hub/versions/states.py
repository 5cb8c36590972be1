"""The versions of a run's state, one file each: whole before the journal names them, removed after newer ones are committed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from depin_nb.core.codec import decode, encode_parts
from depin_nb.core.errors import CodecError, HubError
from depin_nb.core.state import ALIGN_BYTES, State
from depin_nb.hub.records.blobs import write_atomic
from depin_nb.training.merge import OuterState

from .mapped import Mapped

if TYPE_CHECKING:
    import torch

MAPPED_FROM_BYTES = 1 << 20  # smaller files are read
OUTER_VERSIONS = 3  # one that is being committed, and the one before it
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def checked_run_id(run_id: str) -> str:
    """The id, fit for a path. Raises HubError."""
    if not _RUN_ID.fullmatch(run_id):
        raise HubError(f"{run_id!r} is not a run id")
    return run_id


@dataclass
class FileState(State):
    """A state that lies in its file. `mapped`: what to release; None where the file was small and is read."""

    mapped: Mapped | None = None

    def __post_init__(self) -> None:
        self._nbytes = super().nbytes()

    def nbytes(self) -> int:
        """Added up once: the hub asks for it at every lease, and nothing changes it."""
        return self._nbytes


@dataclass(frozen=True)
class FileOuter(OuterState):
    """A velocity that lies in its file, as `FileState`."""

    mapped: Mapped | None = None


class StateFiles:
    """`folder`/<run>/v<version>.state, codec `State` bytes. `relative` names in the journal, so that a state folder can be moved."""

    def __init__(self, folder: Path, mapped_from_bytes: int = MAPPED_FROM_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder, self._mapped_from_bytes = folder, mapped_from_bytes

    def path(self, run_id: str, version: int) -> Path:
        return self.folder / checked_run_id(run_id) / f"v{version:06d}.state"

    def name(self, run_id: str, version: int) -> str:
        """The file as the journal names it: relative to the folder that holds journal and states."""
        return str(self.path(run_id, version).relative_to(self.folder.parent))

    def write(self, run_id: str, version: int, data: bytes | Iterable[bytes | memoryview]) -> None:
        """The version's bytes, or their pieces, which may be made while they are written."""
        path = self.path(run_id, version)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_atomic(path, data)

    def read(self, run_id: str, version: int) -> bytes:
        """Raises HubError when that version isn't kept."""
        try:
            return self.path(run_id, version).read_bytes()
        except FileNotFoundError:
            raise HubError(f"version {version} of {run_id} isn't kept any more") from None

    def open(self, run_id: str, version: int) -> FileState:
        """The version, in its file where that is large. Raises HubError when it isn't kept, CodecError when it is no state."""
        try:
            view, mapped = self._opened(self.path(run_id, version))
        except FileNotFoundError:
            raise HubError(f"version {version} of {run_id} isn't kept any more") from None
        state = State.from_bytes(view, share=True)
        return FileState(state.tensors, state.kinds, state.plain, mapped)

    def _opened(self, path: Path) -> tuple[memoryview, Mapped | None]:
        """A file's bytes as writable memory, mapped where it is large."""
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes < self._mapped_from_bytes:
                return memoryview(bytearray(file.read())), None
            mapped = Mapped(file.fileno(), nbytes)
            return mapped.view, mapped

    def size(self, run_id: str, version: int) -> int:
        """Bytes of that version's file, 0 when it isn't kept."""
        path = self.path(run_id, version)
        return path.stat().st_size if path.exists() else 0

    def total(self, run_id: str) -> int:
        """Bytes of all versions that are kept of a run."""
        return sum(path.stat().st_size for path in self.path(run_id, 0).parent.glob("*.state"))

    def write_outer(self, run_id: str, version: int, momentum: dict[str, torch.Tensor]) -> None:
        """The outer optimizer's velocity beside the version that it led to; nothing where there is none."""
        if momentum:
            write_atomic(self.path(run_id, version).with_suffix(".outer"), encode_parts(momentum, align=ALIGN_BYTES))

    def read_outer(self, run_id: str, version: int) -> OuterState | None:
        """That velocity, in its file where that is large; None where none is kept."""
        try:
            view, mapped = self._opened(self.path(run_id, version).with_suffix(".outer"))
            return FileOuter(decode(view, share=True), mapped)
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
