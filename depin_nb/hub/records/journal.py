"""The journal: one SQLite file (WAL, synchronous=FULL) with every run, entry, merged lease, merge, event, and the ledger's own tables.

One process writes (the hub, from one thread at a time); any other may read at the same time, and when no hub runs.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from depin_nb.core.errors import JournalError, NoSuchRun
from depin_nb.core.events import Event
from depin_nb.hub.records import lent, resumable
from depin_nb.hub.records.rows import RunRows, rows_of, wrong_type
from depin_nb.hub.trouble import of_journal
from depin_nb.ledger import store
from depin_nb.training.lifecycle import TABLE, LeaseState, Trigger

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0
P = ParamSpec("P")
T = TypeVar("T")
CHECK_BELOW_BYTES = 64 << 20  # a whole-file check of a larger journal would hold up the hub's start

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  run_id TEXT PRIMARY KEY, name TEXT NOT NULL, place TEXT NOT NULL, source TEXT NOT NULL, strategy TEXT NOT NULL, backend TEXT NOT NULL,
  budget TEXT, state TEXT NOT NULL, message TEXT NOT NULL DEFAULT '', started_at REAL NOT NULL, ended_at REAL,
  version INTEGER NOT NULL DEFAULT -1, state_file TEXT NOT NULL DEFAULT '', spent_units INTEGER NOT NULL DEFAULT 0,
  reserved_units INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0, summary TEXT);
CREATE TABLE IF NOT EXISTS entries (
  run_id TEXT NOT NULL REFERENCES runs, entry INTEGER NOT NULL, spec TEXT NOT NULL, base_version INTEGER NOT NULL,
  opened_at REAL NOT NULL, closed_at REAL, reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (run_id, entry));
CREATE TABLE IF NOT EXISTS merges (
  run_id TEXT NOT NULL REFERENCES runs, version INTEGER NOT NULL, entry INTEGER NOT NULL, base_version INTEGER NOT NULL,
  iterations INTEGER NOT NULL, samples INTEGER NOT NULL, losses TEXT NOT NULL, state_file TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (run_id, version));
CREATE TABLE IF NOT EXISTS leases (
  lease_id TEXT PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs, entry INTEGER NOT NULL, worker_id TEXT NOT NULL,
  base_version INTEGER NOT NULL, version INTEGER, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', gang TEXT NOT NULL DEFAULT '',
  units TEXT NOT NULL, done INTEGER NOT NULL, flops INTEGER NOT NULL DEFAULT 0, units_dpn INTEGER NOT NULL DEFAULT 0,
  cost_units INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS leases_of_run ON leases (run_id, entry);
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, run_id TEXT NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_run ON events (run_id, id);
"""


@dataclass(frozen=True)
class LeaseRow:
    """A lease that ended. `units`: spans [start, stop, step] of unit indices; `version`: the merge that holds it, None = not merged."""

    lease_id: str
    entry: int
    worker_id: str
    base_version: int
    version: int | None
    state: str
    units: tuple[tuple[int, int, int], ...]
    done: int
    at: float
    reason: str = ""
    gang: str = ""
    flops: int = 0
    units_dpn: int = 0
    cost_units: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class MergeRow:
    """A committed merge. `losses`: (iteration over all entries, loss)."""

    version: int
    entry: int
    base_version: int
    iterations: int
    samples: int
    losses: tuple[tuple[float, float], ...]
    state_file: str
    at: float


@dataclass(frozen=True)
class RunRow:
    """A run as the journal knows it. `summary`: the last Status as a dict, None while it runs (or when its hub was killed).

    `continues`: the run that this one goes on from; `losses` has that one's points too. `resumable`: `--resume` takes it.
    """

    run_id: str
    name: str
    where: str
    strategy: str
    backend: str
    budget: dict[str, Any] | None
    state: str
    message: str
    started_at: float
    ended_at: float | None
    version: int
    settled: bool
    summary: dict[str, Any] | None
    losses: tuple[tuple[float, float], ...] = ()
    merges: tuple[MergeRow, ...] = field(default=(), repr=False)
    continues: str | None = None
    resumable: bool = False


def _read(method: Callable[Concatenate[Journal, P], T]) -> Callable[Concatenate[Journal, P], T]:
    """Within `reading()`."""

    @wraps(method)
    def reading(self: Journal, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.reading():
            return method(self, *args, **kwargs)

    return reading


class Journal:
    """Opens (and makes) the journal at `path`. Raises JournalError when the file can't be used. `writing=False`: only reads."""

    def __init__(self, path: Path, *, writing: bool = True) -> None:
        self.path = path
        self._lock = threading.RLock()
        if not writing and not path.exists():
            raise JournalError("there is no journal yet", path=str(path), hint="A journal is made by the first `%depin up`.")
        with self._errors():
            uri = f"{path.absolute().as_uri()}?mode={'rwc' if writing else 'ro'}"
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
            try:
                self._check()
                if writing:
                    self._prepare()
            except BaseException:
                self.connection.close()
                raise

    def _check(self) -> None:
        found = int(self.connection.execute("PRAGMA user_version").fetchone()[0])
        if found > SCHEMA_VERSION:
            raise JournalError(
                f"the journal {self.path} was written by a newer depin-nb (schema {found})", path=str(self.path), hint="Update depin-nb."
            )
        if self.path.stat().st_size < CHECK_BELOW_BYTES:
            (said,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise sqlite3.DatabaseError(str(said))

    def _prepare(self) -> None:
        run = self.connection.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        with self.transaction() as connection:
            for statement in (_SCHEMA + resumable.SCHEMA + lent.SCHEMA).split(";"):
                connection.execute(statement)
            store.create_tables(connection)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise of_journal(error, self.path) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for a block that only reads. Whatever the rows hold that was never written raises JournalDamaged."""
        with self._lock, self._errors():
            try:
                yield self.connection
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                raise of_journal(error, self.path) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block is written, or nothing. Nothing else writes meanwhile. Raises JournalError or DiskFull when SQLite refuses."""
        with self._lock, self._errors(), store.transaction(self.connection):
            yield self.connection

    def close(self) -> None:
        with self._lock:
            self.connection.close()

    # --- writing: each takes part in the caller's transaction -------------------------------------------

    def add_run(self, run_id: str, *, name: str, where: str, source: str, strategy: str, backend: str, budget: Any, at: float) -> None:
        self.connection.execute(
            "INSERT INTO runs (run_id, name, place, source, strategy, backend, budget, state, started_at) VALUES (?,?,?,?,?,?,?,?,?)",
            (run_id, name, where, source, strategy, backend, None if budget is None else json.dumps(budget), "running", at),
        )

    def add_entry(self, run_id: str, entry: int, spec: dict[str, Any], version: int, state_file: str, at: float) -> None:
        self.connection.execute(
            "INSERT INTO entries (run_id, entry, spec, base_version, opened_at) VALUES (?,?,?,?,?)",
            (run_id, entry, json.dumps(spec), version, at),
        )
        self.connection.execute("UPDATE runs SET version=?, state_file=? WHERE run_id=?", (version, state_file, run_id))

    def close_entry(self, run_id: str, entry: int, reason: str, at: float) -> None:
        self.connection.execute(
            "UPDATE entries SET closed_at=?, reason=? WHERE run_id=? AND entry=? AND closed_at IS NULL", (at, reason, run_id, entry)
        )

    def add_merge(self, run_id: str, row: MergeRow) -> None:
        self.connection.execute(
            "INSERT INTO merges VALUES (?,?,?,?,?,?,?,?,?)",
            (run_id, row.version, row.entry, row.base_version, row.iterations, row.samples, json.dumps(row.losses), row.state_file, row.at),
        )
        self.connection.execute("UPDATE runs SET version=?, state_file=? WHERE run_id=?", (row.version, row.state_file, run_id))

    def add_leases(self, run_id: str, rows: Sequence[LeaseRow]) -> None:
        self.connection.executemany(
            "INSERT INTO leases VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            [
                (
                    r.lease_id, run_id, r.entry, r.worker_id, r.base_version, r.version, r.state, r.reason, r.gang, json.dumps(r.units),
                    r.done, r.flops, r.units_dpn, r.cost_units, r.seconds, r.at,
                )
                for r in rows
            ],
        )  # fmt: skip

    def add_events(self, events: Sequence[Event]) -> None:
        self.connection.executemany(
            "INSERT INTO events (run_id, kind, at, data) VALUES (?,?,?,?)",
            [(e.run_id, e.kind, e.at, json.dumps(e.data)) for e in events],
        )

    def set_money(self, run_id: str, *, spent_units: int, reserved_units: int, budget: dict[str, Any] | None) -> None:
        self.connection.execute(
            "UPDATE runs SET spent_units=?, reserved_units=?, budget=? WHERE run_id=?",
            (spent_units, reserved_units, None if budget is None else json.dumps(budget), run_id),
        )

    def set_budget(self, run_id: str, budget: dict[str, Any]) -> None:
        self.connection.execute("UPDATE runs SET budget=? WHERE run_id=?", (json.dumps(budget), run_id))

    def end_run(self, run_id: str, *, state: str, message: str, at: float) -> None:
        """The run is over: no lease of it is out any more, so nothing is reserved."""
        sql = "UPDATE runs SET state=?, message=?, ended_at=?, reserved_units=0 WHERE run_id=?"
        self.connection.execute(sql, (state, message, at, run_id))

    def paid(self, run_id: str) -> None:
        self.connection.execute("UPDATE runs SET settled=1 WHERE run_id=?", (run_id,))
        for before in LeaseState:
            if (before, Trigger.PAY) in TABLE:
                after = TABLE[before, Trigger.PAY]
                self.connection.execute("UPDATE leases SET state=? WHERE run_id=? AND state=?", (after.value, run_id, before.value))

    def set_summary(self, run_id: str, summary: dict[str, Any]) -> None:
        self.connection.execute("UPDATE runs SET summary=? WHERE run_id=?", (json.dumps(summary), run_id))

    # --- reading ------------------------------------------------------------------------------------------

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self.connection.execute(sql, values).fetchall()

    _RUN = (
        "SELECT run_id, name, place, strategy, backend, budget, state, message, started_at, ended_at, version, settled, summary FROM runs "
    )

    @_read
    def runs(self) -> list[RunRow]:
        """All runs, newest first, without their curves."""
        rows = self._rows(self._RUN + "ORDER BY started_at DESC, rowid DESC")
        able, continues = set(resumable.heads(self.connection)), resumable.links(self.connection)
        return [replace(_run(row), resumable=row[0] in able, continues=continues.get(row[0])) for row in rows]

    @_read
    def run(self, run_id: str) -> RunRow:
        """One run with its loss points and merges. Raises NoSuchRun."""
        rows = self._rows(self._RUN + "WHERE run_id=?", run_id)
        if not rows:
            raise NoSuchRun(f"there is no run {run_id!r} in the journal", run_id=run_id)
        merges = tuple(
            _merge(row)
            for row in self._rows(
                "SELECT version, entry, base_version, iterations, samples, losses, state_file, at FROM merges"
                " WHERE run_id=? ORDER BY version",
                run_id,
            )
        )
        parts = resumable.chain(self.connection, run_id)
        able = run_id in resumable.heads(self.connection)
        told = [json.loads(r[0]) for part in parts for r in self._rows("SELECT losses FROM merges WHERE run_id=?", part)]
        losses = tuple(sorted((float(i), float(v)) for points in told for i, v in points))
        return replace(_run(rows[0], losses, merges), resumable=able, continues=parts[-2] if len(parts) > 1 else None)

    @_read
    def rows(self, run_id: str) -> list[RunRows]:
        """All rows of the run and of those that it continues, oldest first. Raises NoSuchRun."""
        found = [rows_of(self.connection, part) for part in resumable.chain(self.connection, run_id)]
        if not found[-1]["runs"] and not found[-1].broken:
            raise NoSuchRun(f"there is no run {run_id!r} in the journal", run_id=run_id)
        return found

    @_read
    def points(self, run_id: str, after: int, until: int) -> list[float]:
        """The losses of the merges after version `after` up to `until`."""
        rows = self._rows("SELECT losses FROM merges WHERE run_id=? AND version>? AND version<=?", run_id, after, until)
        return [float(value) for (points,) in rows for _, value in json.loads(points)]

    @_read
    def newest_state(self, run_id: str) -> Path:
        """The file of the run's newest committed version (codec `State`); where it has none, that of the run which it continues.

        Raises NoSuchRun, or JournalError when there is none.
        """
        parts = resumable.chain(self.connection, run_id)
        named = [row for part in parts[::-1] for row in self._rows("SELECT state_file FROM runs WHERE run_id=?", part)]
        if not named:
            raise NoSuchRun(f"there is no run {run_id!r} in the journal", run_id=run_id)
        rows = [row for row in named if row[0]] or named
        path = Path(rows[0][0]) if rows[0][0] else None
        if path is not None and not path.is_absolute():
            path = self.path.parent / path
        if path is None or not path.exists():
            raise JournalError(f"{run_id} has no weights kept", path=str(self.path), hint="A run has weights from its first loop on.")
        return path

    @_read
    def merged_units(self, run_id: str, entry: int) -> list[tuple[int, str]]:
        """Every (unit index, id of a merged lease that holds it) of an entry, in order. Exactly once = each index once."""
        pairs = []
        for lease_id, spans, done in self._rows(
            "SELECT lease_id, units, done FROM leases WHERE run_id=? AND entry=? AND version IS NOT NULL", run_id, entry
        ):
            indices = [i for start, stop, step in json.loads(spans) for i in range(start, stop, step)]
            pairs += [(i, lease_id) for i in indices[:done]]
        return sorted(pairs)

    @_read
    def events(self, run_id: str) -> list[Event]:
        rows = self._rows("SELECT run_id, kind, at, data FROM events WHERE run_id=? ORDER BY id", run_id)
        return [Event(run, kind, at, json.loads(data)) for run, kind, at, data in rows]

    def leases(self, run_id: str) -> list[tuple[str, str, str]]:
        """(lease id, state, worker id) of every lease of a run that ended."""
        return [(a, b, c) for a, b, c in self._rows("SELECT lease_id, state, worker_id FROM leases WHERE run_id=? ORDER BY rowid", run_id)]

    def unfinished(self) -> tuple[list[str], list[str]]:
        """(runs still marked running, ended runs not yet settled or without their last status): what a killed hub left."""
        running = [str(r[0]) for r in self._rows("SELECT run_id FROM runs WHERE ended_at IS NULL ORDER BY started_at")]
        left = "ended_at IS NOT NULL AND (settled=0 OR summary IS NULL)"
        unsettled = [str(r[0]) for r in self._rows(f"SELECT run_id FROM runs WHERE {left} ORDER BY started_at")]
        return running, unsettled


def _merge(row: tuple[Any, ...]) -> MergeRow:
    version, entry, base_version, iterations, samples, losses, state_file, at = row
    points = tuple((float(i), float(v)) for i, v in json.loads(losses))
    return MergeRow(version, entry, base_version, iterations, samples, points, state_file, at)


def _run(row: tuple[Any, ...], losses: tuple[tuple[float, float], ...] = (), merges: tuple[MergeRow, ...] = ()) -> RunRow:
    names = "run_id name place strategy backend budget state message started_at ended_at version settled summary"
    if wrong := wrong_type("runs", dict(zip(names.split(), row, strict=True))):
        raise ValueError(f"the {wrong} of {row[0]!r} isn't what was written")
    run_id, name, where, strategy, backend, budget, state, message, started_at, ended_at, version, settled, summary = row
    return RunRow(
        run_id=run_id,
        name=name,
        where=where,
        strategy=strategy,
        backend=backend,
        budget=None if budget is None else json.loads(budget),
        state=state,
        message=message,
        started_at=started_at,
        ended_at=ended_at,
        version=version,
        settled=bool(settled),
        summary=None if summary is None else json.loads(summary),
        losses=losses,
        merges=merges,
    )
