"""A run as the journal knows it, with or without a hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core import config
from ..core.errors import DepinError
from ..core.status import Status
from ..hub.records.journal import Journal
from ..hub.records.orphaned import orphaned
from .run import Run

if TYPE_CHECKING:
    from .session import Session


def journalled(run_id: str) -> Run:
    """Metrics and weights of what was merged. Raises NoSuchRun."""
    from .session import newest_kept

    journal = Journal(config.journal_file(), writing=False)
    try:
        row = orphaned(journal.run(run_id))
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


def status_of(session: Session | None, run_id: str) -> Status:
    """A run's status from the hub, or from the journal where the hub is gone or doesn't know it any more."""
    if session is not None:
        try:
            return Status.from_dict(session.hub.call("status", run=run_id)["status"])
        except DepinError:
            pass
    return journalled(run_id).status
