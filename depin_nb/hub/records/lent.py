"""Which leases are lent: a row for each, so that a hub that starts after a killed one knows what its workers may bring back.

A row is written a moment after its lease was given. One that was never written names a lease that the next hub doesn't know: its
iterations are leased again, and what its worker hands in is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

SCHEMA = """
CREATE TABLE IF NOT EXISTS lent (
  lease_id TEXT PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs, entry INTEGER NOT NULL, worker_id TEXT NOT NULL, wallet TEXT NOT NULL,
  profile TEXT NOT NULL, process TEXT NOT NULL, base_version INTEGER NOT NULL, number INTEGER NOT NULL, units TEXT NOT NULL,
  final INTEGER NOT NULL, base_iteration INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS lent_of_run ON lent (run_id, entry);
"""
_COLUMNS = "lease_id, entry, worker_id, wallet, profile, process, base_version, number, units, final, base_iteration"


@dataclass(frozen=True)
class Lent:
    """A lease as it was given. `process`: what the worker calls its process, so that another one of its name isn't taken for it."""

    lease_id: str
    entry: int
    worker_id: str
    wallet: str
    profile: str
    process: str
    base_version: int
    number: int
    units: tuple[tuple[int, int, int], ...]
    final: bool
    base_iteration: int

    @property
    def indices(self) -> list[int]:
        return [i for start, stop, step in self.units for i in range(start, stop, step)]


def add(conn: sqlite3.Connection, run_id: str, rows: Sequence[Lent]) -> None:
    conn.executemany(
        "INSERT OR REPLACE INTO lent VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        [
            (
                r.lease_id, run_id, r.entry, r.worker_id, r.wallet, r.profile, r.process, r.base_version, r.number, json.dumps(r.units),
                int(r.final), r.base_iteration,
            )
            for r in rows
        ],
    )  # fmt: skip


def of_entry(conn: sqlite3.Connection, run_id: str, entry: int) -> list[Lent]:
    """All that were lent of an entry, in the order of lending."""
    rows = conn.execute(f"SELECT {_COLUMNS} FROM lent WHERE run_id=? AND entry=? ORDER BY number", (run_id, entry))
    return [
        Lent(lease_id, entry, worker_id, wallet, profile, process, base, number, _spans(units), bool(final), at)
        for lease_id, entry, worker_id, wallet, profile, process, base, number, units, final, at in rows
    ]


def _spans(text: str) -> tuple[tuple[int, int, int], ...]:
    return tuple((a, b, c) for a, b, c in json.loads(text))


def ended(conn: sqlite3.Connection, run_id: str, entry: int) -> set[str]:
    """Those of an entry's leases that came to their end, whatever end."""
    return {str(row[0]) for row in conn.execute("SELECT lease_id FROM leases WHERE run_id=? AND entry=?", (run_id, entry))}


def profiles(conn: sqlite3.Connection, run_id: str) -> dict[str, str]:
    """The device profile of each worker that had a lease of the run."""
    return {str(a): str(b) for a, b in conn.execute("SELECT DISTINCT worker_id, profile FROM lent WHERE run_id=?", (run_id,))}


def drop(conn: sqlite3.Connection, run_id: str) -> None:
    """The run has ended."""
    conn.execute("DELETE FROM lent WHERE run_id=?", (run_id,))
