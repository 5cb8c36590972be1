"""What a resumed run replays: the merged leases' logs, a file for each merge, whole on disk before the journal names it."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError, JournalError
from depin_nb.hub.leases.entry import Result
from depin_nb.hub.records.blobs import write_atomic
from depin_nb.hub.versions.states import checked_run_id

LEVEL = 1  # zlib: logs shrink to about a quarter at 100 MB/s and more


@dataclass(frozen=True)
class Written:
    """A merge's results on disk: the file as the journal names it, its size, and (first iteration, count, exit) of each result."""

    file: str
    nbytes: int
    spans: tuple[tuple[int, int, str], ...]


class ReplayFiles:
    """`folder`/<run>/v<version>.logs: zlib-compressed codec bytes. The logs in it came from workers and stay opaque here."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder

    def write(self, run_id: str, version: int, results: Sequence[Result], drawn: Mapping[int, bytes]) -> Written:
        """`drawn`: the digest of what each iteration drew, by index."""
        path = self.folder / checked_run_id(run_id) / f"v{version:06d}.logs"
        path.parent.mkdir(exist_ok=True, mode=0o700)
        body = [{**r.to_dict(), "logs": list(r.logs), "drawn": b"".join(drawn[r.first + i] for i in range(len(r.logs)))} for r in results]
        data = zlib.compress(encode(body), LEVEL)
        write_atomic(path, data)
        return Written(str(path.relative_to(self.folder)), len(data), tuple((r.first, len(r.logs), r.exit) for r in results))

    def read(self, file: str) -> list[dict[str, Any]]:
        """The results in a file: `first`, `logs`, `left`, `exit`, `version`, and `drawn` (core.lease.DRAWN_BYTES for each log).

        Raises JournalError when the file isn't what was written.
        """
        path = self.folder / file
        try:
            found = decode(zlib.decompress(path.read_bytes()))
            return [dict(part) for part in found]
        except (OSError, zlib.error, CodecError, ValueError, TypeError) as error:
            raise JournalError(
                f"the logs in {path.name} can't be read: {error}", path=str(path), hint="Run the cell again without --resume."
            ) from error

    def drop(self, run_id: str) -> None:
        shutil.rmtree(self.folder / checked_run_id(run_id), ignore_errors=True)

    def keep(self, run_id: str, files: Collection[str]) -> None:
        """Removes what the run has beside `files` (as the journal names them): of a merge that was never committed."""
        for path in (self.folder / checked_run_id(run_id)).glob("*"):
            if str(path.relative_to(self.folder)) not in files:
                path.unlink(missing_ok=True)

    def prune(self, keep: Collection[str]) -> None:
        """Removes every run's files but those of `keep`: at the hub's start, what a kill left."""
        for path in self.folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)
