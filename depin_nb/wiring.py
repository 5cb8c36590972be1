"""The one place that chooses concrete classes and holds this process's session. Called by the doors (magics, CLI, `depin_nb.connect`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import config
from .core.amount import Amount, parse
from .core.errors import NoHub, NoSuchRun, UsageError

if TYPE_CHECKING:
    from .hub.records.checking import CheckReport
    from .hub.versions.checkpoint_files import Checkpoint
    from .ledger.verify import VerifyReport
    from .session import Run, Session
    from .session.detached import DetachedRun

BACKENDS = ("local", "depin")
_DEFAULT_WORKERS = {"local": 2, "depin": 4}
_session: Session | None = None


def up(backend: str | None = None, workers: int | None = None, budget: Amount | None = None) -> Session:
    """This process's session: starts the hub if none runs, then the workers, and waits until they have joined."""
    global _session
    from .hub.launch import start_hub
    from .session import Session

    backend = backend or (_session.backend if _session is not None else "local")
    if backend not in BACKENDS:
        raise UsageError(f"{backend!r} is not a backend here", hint=f"One of {', '.join(BACKENDS)}.")
    info = start_hub()
    if _session is None or _session.info != info:
        if _session is not None:
            _session.close()
        _session = Session(info)
    _session.backend = backend
    if "cluster" in _session.__dict__:
        _session.cluster.backend = backend
    _session.budget = budget if budget is not None else _session.budget
    _session.scale(_DEFAULT_WORKERS[backend] if workers is None else workers, backend)
    return _session


def connect(backend: str = "local", workers: int | None = None, *, budget: str | Amount | None = None) -> Session:
    """`depin_nb.connect`: as `%depin up`, for scripts."""
    return up(backend, workers, parse(budget) if isinstance(budget, str) else budget)


def current() -> Session:
    """This process's session; one that finds a hub running joins it. Raises NoHub."""
    global _session
    from .hub.launch import find_hub

    info = find_hub()
    if info is None:
        raise NoHub("no hub is running")
    if _session is None or _session.info != info:
        from .session import Session

        kept = _session
        _session = Session(info, backend=kept.backend if kept else "local", budget=kept.budget if kept else None)
        if kept is None and any(d.simulated for d in _session.workers()):
            _session.backend = "depin"
        if kept is not None:
            kept.close()
    return _session


def down() -> None:
    """Stops the hub and its workers, also those that a killed hub has left; everything stays in the journal."""
    global _session
    from .hub.launch import find_hub, stop_hub
    from .hub.processes import end_left

    if _session is not None:
        _session.close()
        _session = None
    info = find_hub()
    if info is not None:
        stop_hub(info)
    else:
        end_left()


def runs() -> list[dict[str, Any]]:
    """The journal's runs, newest first; also when no hub runs."""
    from dataclasses import asdict

    from .hub.records.journal import Journal
    from .hub.records.orphaned import orphaned

    if not config.journal_file().exists():
        return []
    journal = Journal(config.journal_file(), writing=False)
    try:
        return [asdict(orphaned(row)) for row in journal.runs()]
    finally:
        journal.close()


def check(run_id: str) -> CheckReport:
    """Proves from the journal and the ledger that the run is what it says; also when no hub runs. Raises NoSuchRun."""
    from .hub.records.checking import check
    from .hub.records.journal import Journal

    journal = Journal(config.journal_file(), writing=False)
    try:
        return check(journal.rows(run_id))
    finally:
        journal.close()


def checkpoints(run_id: str) -> list[Checkpoint]:
    """A run's checkpoints on disk, by version. Raises NoSuchRun."""
    return attach(run_id).checkpoints()


def export_run(run_id: str, to: str) -> Path:
    """Writes a run as a folder for another hub; also when no hub runs. Returns the folder. Raises NoSuchRun, RunFolderError."""
    from .hub.records.moving import export_run

    return export_run(config.home(), run_id, Path(to).expanduser())


def import_run(folder: str) -> str:
    """Takes a run's folder in; returns the run's id. Raises RunFolderError with nothing changed."""
    from .hub.info import FileLock
    from .hub.records.moving import import_run

    with FileLock(config.home() / "launch.lock"):  # a hub that starts now would sweep away files that no row names yet
        return import_run(config.home(), Path(folder).expanduser())


def attach(run_id: str) -> Run:
    """A run from the journal: metrics and weights of what was merged; a detached one can be followed and bound. Raises NoSuchRun."""
    from .hub.detached.folder import DetachedFolder
    from .hub.launch import find_hub
    from .session.detached import held
    from .session.journalled import journalled

    if not DetachedFolder(run_id).exists():
        return journalled(run_id)
    return held(current() if find_hub() is not None else None, run_id)


def lives() -> bool:
    """Whether a hub runs."""
    from .hub.launch import find_hub

    return find_hub() is not None


def detached(run_id: str | None = None) -> DetachedRun:
    """A detached run, without an id the newest. Raises NoSuchRun for one that isn't."""
    from .hub.detached.folder import DetachedFolder
    from .session.detached import DetachedRun

    wanted = run_id or next((row["run_id"] for row in runs() if DetachedFolder(row["run_id"]).exists()), None)
    found = attach(wanted) if wanted is not None else None
    if not isinstance(found, DetachedRun):
        what = "there is no detached run" if wanted is None else f"{wanted} wasn't detached"
        raise NoSuchRun(what, run_id=wanted or "", hint="`%%depin train --detach` on top of a cell makes one.")
    return found


def verify(run_id: str) -> VerifyReport:
    """Recomputes a run's payouts from the chain and the receipts; also when no hub runs."""
    from .ledger import store
    from .ledger.embedded import EmbeddedChain
    from .ledger.verify import verify_run

    conn = store.connect(config.journal_file(), read_only=True)
    chain = EmbeddedChain()
    try:
        return verify_run(run_id, conn, chain)
    finally:
        chain.close()
        conn.close()
