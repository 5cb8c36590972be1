"""Runs whose hub was killed, before another hub has marked them. Light: for listings without a hub."""

from __future__ import annotations

from dataclasses import replace

from depin_nb.hub.info import hub_pid
from depin_nb.hub.records.journal import RunRow


def orphaned(row: RunRow) -> RunRow:
    """The row; one that still counts as running although no hub lives says that it isn't."""
    if row.ended_at is None and hub_pid() is None:
        return replace(row, state="interrupted", message="its hub ended")
    return row
