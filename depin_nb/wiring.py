"""The one place that chooses concrete classes and holds this process's session. Called by the doors (magics, CLI, `depin_nb.connect`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core import config
from .core.amount import Amount, parse
from .core.errors import NoHub, UsageError

if TYPE_CHECKING:
    from .ledger.verify import VerifyReport
    from .session import Run, Session

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
    """Stops the hub and its workers; everything stays in the journal."""
    global _session
    from .hub.launch import find_hub, stop_hub

    if _session is not None:
        _session.close()
        _session = None
    info = find_hub()
    if info is not None:
        stop_hub(info)


def runs() -> list[dict[str, Any]]:
    """The journal's runs, newest first; also when no hub runs."""
    from dataclasses import asdict

    from .hub.journal import Journal

    if not config.journal_file().exists():
        return []
    journal = Journal(config.journal_file(), writing=False)
    try:
        return [asdict(row) for row in journal.runs()]
    finally:
        journal.close()


def attach(run_id: str) -> Run:
    """A run from the journal: metrics and weights of what was merged. Raises NoSuchRun."""
    from .core.status import Status
    from .hub.journal import Journal
    from .session import Run
    from .session.session import newest_kept

    journal = Journal(config.journal_file(), writing=False)
    try:
        row = journal.run(run_id)
    finally:
        journal.close()
    if row.summary is not None:
        status = Status.from_dict(row.summary)
    else:
        status = Status(
            run_id=row.run_id, name=row.name, state=row.state, strategy=row.strategy, where=row.where, backend=row.backend,
            simulated=row.backend == "depin", started_at=row.started_at, iterations_done=sum(m.iterations for m in row.merges),
            samples_done=sum(m.samples for m in row.merges), merges=len(row.merges), loss=row.losses[-200:],
        )  # fmt: skip
    return Run(run_id, status, lambda: newest_kept(run_id), losses=row.losses)


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
