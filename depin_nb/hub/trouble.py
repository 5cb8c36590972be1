"""What a user is told when a disk is full or the journal is damaged: what happened, the newest good checkpoint, the next step."""

from __future__ import annotations

import os
from pathlib import Path

from depin_nb.core.errors import CheckpointError, DepinError, DiskFull, JournalDamaged, JournalError
from depin_nb.core.storage import disk_full, is_damaged, is_full
from depin_nb.hub.versions.checkpoint_files import Checkpoint, CheckpointFiles

READ_BYTES = 256 << 20  # a checkpoint up to this size is read whole before it is called good


def newest_good(home: Path, run_id: str = "") -> Checkpoint | None:
    """The newest checkpoint of a run, or of all runs of the state folder, whose bytes are as they were written."""
    files = CheckpointFiles(home / "runs")
    try:
        names = [run_id] if run_id else [p.name for p in files.folder.iterdir()]
        found = [c for name in names for c in files.all(name)]
    except (OSError, DepinError):
        return None
    return next((c for c in sorted(found, key=lambda c: (-c.told.at, -c.version)) if _good(c)), None)


def named(home: Path, run_id: str = "") -> str:
    """That checkpoint in a sentence."""
    found = newest_good(home, run_id)
    if found is None:
        return f"There is no checkpoint{f' of {run_id}' if run_id else ''} yet."
    loss = "" if found.loss is None else f", loss {found.loss:.4g}"
    return f"The newest good checkpoint is {found.path} ({found.told.run}, iteration {found.told.iteration:,}{loss})."


def of_journal(error: Exception, path: Path) -> DepinError:
    """A JournalError (or DiskFull) for what SQLite said of the journal at `path`."""
    if is_full(error, path):
        return disk_full(path)
    if is_damaged(error) or isinstance(error, (ValueError, TypeError, KeyError, OverflowError, RecursionError)):
        return JournalDamaged(
            f"the journal {path} is damaged: {error}",
            hint=f"{named(path.parent)} It loads without the journal (docs/runs.md). Move the journal and its -wal and -shm files"
            " away, or put a copy of them back; `%depin up` makes a new one.",
            path=str(path),
        )
    return JournalError(
        f"the journal {path} can't be used: {error}", path=str(path), hint="Check the disk and the rights of the folder that it is in."
    )


def explained(error: Exception, home: Path, run_id: str = "") -> Exception:
    """The error with the run's newest good checkpoint and the next step, where it is one of storage; any other as it is."""
    if isinstance(error, OSError) and is_full(error, home):
        error = disk_full(Path(error.filename or home))
    if isinstance(error, DiskFull):
        step = f"Free some space in {home}, then `%%depin train --resume {run_id or 'RUN'}` goes on from the last merge."
        hint = f"Nothing that was merged is lost. {step} {named(home, run_id)}"
        return DiskFull(error.message, hint=hint, path=error.fields.get("path", str(home)))
    return error


def _good(checkpoint: Checkpoint) -> bool:
    try:
        size = sum(os.path.getsize(checkpoint.path / name) for name in checkpoint.files)
        return size > READ_BYTES or checkpoint.whole()
    except (OSError, CheckpointError):
        return False
