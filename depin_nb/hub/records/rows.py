"""A run's rows in the journal and the ledger, as plain values with checked types: `depin runs check` and a run's folder need them.

Reads only. A damaged or hostile database may hold anything anywhere, so nothing is taken before its column's type is right.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Row = dict[str, Any]

#: table -> its columns with their types; `?`: may be NULL. In the order in which rows may be inserted again.
TABLES: dict[str, str] = {
    "runs": "run_id:text name:text place:text source:text strategy:text backend:text budget:text? state:text message:text started_at:real"
    " ended_at:real? version:int state_file:text spent_units:int reserved_units:int settled:int summary:text?",
    "entries": "run_id:text entry:int spec:text base_version:int opened_at:real closed_at:real? reason:text",
    "merges": "run_id:text version:int entry:int base_version:int iterations:int samples:int losses:text state_file:text at:real",
    "leases": "lease_id:text run_id:text entry:int worker_id:text base_version:int version:int? state:text reason:text gang:text units:text"
    " done:int flops:int units_dpn:int cost_units:int seconds:real at:real",
    "events": "run_id:text kind:text at:real data:text",
    "resumes": "run_id:text source_digest:text asked:text continues:text? cut:int lost_at:real? kept:int",
    "sites": "run_id:text entry:int number:int header:text place:text generators:blob end_version:int?",
    "replays": "run_id:text version:int entry:int spans:text file:text nbytes:int",
    "ledger_runs": "run_id:text user:text session:text mint:text budget_units:int capped:int state:text root:blob? refunded:int",
    "ledger_receipts": "run_id:text position:int lease_id:text body:blob",
    "ledger_vouchers": "run_id:text worker_id:text wallet:text units:int sequence:int root:blob signature:blob frontier:blob",
    "ledger_payouts": "run_id:text wallet:text units:int step:text",
    "ledger_transactions": "run_id:text step:text signature:text blockhash:text signed:blob state:text",
}
_KINDS: dict[str, tuple[type, ...]] = {"text": (str,), "int": (int,), "real": (float, int), "blob": (bytes,)}


def columns(table: str) -> list[str]:
    """The names of a table's columns that belong to a run (not SQLite's own row numbers)."""
    return [part.split(":")[0] for part in TABLES[table].split()]


def wrong_type(table: str, row: Mapping[str, Any]) -> str:
    """The first of the row's columns whose value isn't of its type; "" when all are."""
    for part in TABLES[table].split():
        name, kind = part.split(":")
        if name not in row or ((value := row[name]) is None and kind.endswith("?")):
            continue
        if type(value) not in _KINDS[kind.rstrip("?")]:
            return name
    return ""


@dataclass(frozen=True)
class RunRows:
    """`rows`: by table, in the order in which they were written; `broken`: (table, column, row number) of rows that were left out."""

    run_id: str
    rows: dict[str, list[Row]]
    broken: tuple[tuple[str, str, int], ...] = ()

    def __getitem__(self, table: str) -> list[Row]:
        return self.rows[table]


def rows_of(conn: sqlite3.Connection, run_id: str) -> RunRows:
    """All rows of a run; tables that an older journal lacks are empty. Raises sqlite3.Error for a file that can't be read."""
    found: dict[str, list[Row]] = {}
    broken: list[tuple[str, str, int]] = []
    have = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    for table in TABLES:
        found[table] = []
        if table not in have:
            continue
        names = columns(table)
        query = f"SELECT rowid, {', '.join(names)} FROM {table} WHERE run_id=? ORDER BY rowid"
        for number, *values in conn.execute(query, (run_id,)):
            row = dict(zip(names, values, strict=True))
            if name := wrong_type(table, row):
                broken.append((table, name, number))
            else:
                found[table].append(row)
    return RunRows(run_id, found, tuple(broken))


def spans_of(indices: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Indices in ascending order as [start, stop, step] spans: one for a contiguous lease or a gang's rank."""
    if not indices:
        return ()
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if all(b - a == step for a, b in pairwise(indices)):
        return ((indices[0], indices[-1] + 1, step),)
    return tuple((i, i + 1, 1) for i in indices)
