"""Which runs can go on, and what the journal has of them: SQL only, and light, for `%load_ext` asks it too (no torch, no ledger).

A run that is resumed goes on as a new run that `continues` it: the old one's vault was closed when it ended, so money of the two stays
apart, and each verifies by itself. What both merged belongs together by the loop entry's `number` in the cell (1, 2, ..).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RECENT_S = 7 * 86400.0  # as long as an unused blob is kept

SCHEMA = """
CREATE TABLE IF NOT EXISTS resumes (
  run_id TEXT PRIMARY KEY REFERENCES runs, source_digest TEXT NOT NULL, asked TEXT NOT NULL, continues TEXT,
  cut INTEGER NOT NULL DEFAULT 0, lost_at REAL, kept INTEGER NOT NULL DEFAULT 1);
CREATE INDEX IF NOT EXISTS resumes_by_source ON resumes (source_digest);
CREATE TABLE IF NOT EXISTS sites (
  run_id TEXT NOT NULL REFERENCES runs, entry INTEGER NOT NULL, number INTEGER NOT NULL, header TEXT NOT NULL, place TEXT NOT NULL,
  generators BLOB NOT NULL, end_version INTEGER, PRIMARY KEY (run_id, entry));
CREATE TABLE IF NOT EXISTS replays (
  run_id TEXT NOT NULL REFERENCES runs, version INTEGER NOT NULL, entry INTEGER NOT NULL, spans TEXT NOT NULL, file TEXT NOT NULL,
  nbytes INTEGER NOT NULL, PRIMARY KEY (run_id, version));
"""

_HEADS = """
SELECT r.run_id FROM runs r JOIN resumes s ON s.run_id = r.run_id
WHERE s.kept = 1 AND r.state != 'finished' AND (r.ended_at IS NOT NULL OR s.lost_at IS NOT NULL)
AND (s.continues IS NOT NULL OR EXISTS (SELECT 1 FROM merges m WHERE m.run_id = r.run_id))
AND NOT EXISTS (SELECT 1 FROM resumes t JOIN runs q ON q.run_id = t.run_id WHERE t.continues = r.run_id AND (
  q.ended_at IS NULL OR q.state = 'finished' OR EXISTS (SELECT 1 FROM entries e WHERE e.run_id = t.run_id)))
"""


@dataclass(frozen=True)
class Span:
    """A result that a merge holds: iterations `first` to `first + count - 1`, and how the body left the loop in the last one."""

    first: int
    count: int
    exit: str
    run_id: str
    version: int
    file: str


@dataclass(frozen=True)
class Chapter:
    """One entry of the loop over all runs that worked on it. `number`: its place in the cell's run; `spec`: that of its first part.

    `spans` ascending; `contiguous`: iterations merged without a gap from 0; `end`: (run, version) of its last state;
    `complete`: the kernel had it to its end. `generators`: codec bytes of the kernel's generators before it.
    """

    number: int
    header: str
    place: str
    spec: dict[str, Any]
    generators: bytes
    spans: tuple[Span, ...]
    end: tuple[str, int]
    complete: bool

    @property
    def contiguous(self) -> int:
        at = 0
        for span in self.spans:
            if span.first != at:
                break
            at += span.count
        return at

    @property
    def merged(self) -> int:
        return sum(span.count for span in self.spans)


def normalized(source: str) -> str:
    """A cell's text without what makes no difference: blank ends of lines and of the cell."""
    return "\n".join(line.rstrip() for line in source.rstrip().splitlines())


def digest_of(source: str) -> str:
    return hashlib.sha256(normalized(source).encode()).hexdigest()


def difference(before: str, now: str) -> str:
    """The first line in which two texts differ, in words; "" when they are the same."""
    old, new = normalized(before).splitlines(), normalized(now).splitlines()
    for tag, i, i2, j, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "delete":
            return f"line {i + 1} of then is missing: `{old[i].strip()}`"
        if tag == "insert":
            return f"line {j + 1} is new: `{new[j].strip()}`"
        if tag == "replace":
            return f"line {j + 1} is `{new[j].strip()}` and was `{old[i].strip()}`" if i2 > i and j2 > j else f"line {j + 1} differs"
    return ""


# --- writing: within the journal's transaction ------------------------------------------------------------


def add_run(conn: sqlite3.Connection, run_id: str, *, source: str, asked: dict[str, Any], continues: str | None, kept: bool) -> None:
    conn.execute(
        "INSERT INTO resumes (run_id, source_digest, asked, continues, kept) VALUES (?,?,?,?,?)",
        (run_id, digest_of(source), json.dumps(asked), continues, kept),
    )


def add_site(conn: sqlite3.Connection, run_id: str, entry: int, *, number: int, header: str, place: str, generators: bytes) -> None:
    conn.execute(
        "INSERT INTO sites (run_id, entry, number, header, place, generators) VALUES (?,?,?,?,?,?)",
        (run_id, entry, number, header, place, generators),
    )


def end_site(conn: sqlite3.Connection, run_id: str, entry: int, version: int) -> None:
    conn.execute("UPDATE sites SET end_version=? WHERE run_id=? AND entry=? AND end_version IS NULL", (version, run_id, entry))


def add_replay(
    conn: sqlite3.Connection, run_id: str, version: int, entry: int, spans: Sequence[tuple[int, int, str]], file: str, nbytes: int
) -> None:
    """What a merge's results are kept in. `spans`: (first iteration, count, exit) of each."""
    conn.execute("INSERT INTO replays VALUES (?,?,?,?,?,?)", (run_id, version, entry, json.dumps(spans), file, nbytes))


def set_lost(conn: sqlite3.Connection, run_id: str, at: float | None) -> None:
    """The connection of the run's kernel is closed since `at`; None: it has called again."""
    conn.execute("UPDATE resumes SET lost_at=? WHERE run_id=?", (at, run_id))


def set_cut(conn: sqlite3.Connection, run_id: str) -> None:
    """Nobody ended this run: its kernel or its hub went away."""
    conn.execute("UPDATE resumes SET cut=1 WHERE run_id=?", (run_id,))


def drop(conn: sqlite3.Connection, run_id: str) -> None:
    """Nothing is kept of the run any more for going on; metrics and newest weights stay."""
    conn.execute("UPDATE resumes SET kept=0 WHERE run_id=?", (run_id,))
    conn.execute("DELETE FROM replays WHERE run_id=?", (run_id,))
    conn.execute("UPDATE sites SET generators=x'' WHERE run_id=?", (run_id,))


# --- reading ------------------------------------------------------------------------------------------------


def has_tables(conn: sqlite3.Connection) -> bool:
    return conn.execute("SELECT 1 FROM sqlite_master WHERE name='resumes'").fetchone() is not None


def heads(conn: sqlite3.Connection, source: str | None = None) -> list[str]:
    """Runs that can be resumed, newest first; with `source`, those of the same cell."""
    if not has_tables(conn):
        return []
    sql, values = _HEADS, ()
    if source is not None:
        sql, values = sql + " AND s.source_digest = ?", (digest_of(source),)  # type: ignore[assignment]
    return [str(row[0]) for row in conn.execute(sql + " ORDER BY r.started_at DESC, r.rowid DESC", values)]


def chain(conn: sqlite3.Connection, run_id: str) -> list[str]:
    """The run and those that it continues, oldest first."""
    found: list[str] = []
    at: str | None = run_id
    while at is not None and at not in found and has_tables(conn):
        found.append(at)
        row = conn.execute("SELECT continues FROM resumes WHERE run_id=?", (at,)).fetchone()
        at = row[0] if row is not None else None
    return found[::-1] or [run_id]


def links(conn: sqlite3.Connection) -> dict[str, str]:
    """Run -> the run that it continues."""
    if not has_tables(conn):
        return {}
    return {str(a): str(b) for a, b in conn.execute("SELECT run_id, continues FROM resumes WHERE continues IS NOT NULL")}


def successors(conn: sqlite3.Connection, run_id: str) -> list[tuple[str, str, bool]]:
    """(run id, state, whether it has ended) of the runs that continue this one and opened a loop entry or still go on."""
    return [
        (str(a), str(b), c is not None)
        for a, b, c in conn.execute(
            "SELECT q.run_id, q.state, q.ended_at FROM resumes t JOIN runs q ON q.run_id=t.run_id WHERE t.continues=? AND ("
            "q.ended_at IS NULL OR q.state='finished' OR EXISTS (SELECT 1 FROM entries e WHERE e.run_id=q.run_id))",
            (run_id,),
        )
    ]


def chapters(conn: sqlite3.Connection, run_id: str) -> list[Chapter]:
    """What the run and those that it continues did, by loop entry."""
    made: dict[int, Chapter] = {}
    for part in chain(conn, run_id):
        (newest,) = conn.execute("SELECT version FROM runs WHERE run_id=?", (part,)).fetchone()
        rows = conn.execute(
            "SELECT s.entry, s.number, s.header, s.place, s.generators, s.end_version, e.spec, e.reason FROM sites s"
            " JOIN entries e ON e.run_id=s.run_id AND e.entry=s.entry WHERE s.run_id=? ORDER BY s.entry",
            (part,),
        ).fetchall()
        for entry, number, header, place, generators, end_version, spec, reason in rows:
            spans = tuple(
                Span(int(first), int(count), str(left), part, version, file)
                for version, told, file in conn.execute(
                    "SELECT version, spans, file FROM replays WHERE run_id=? AND entry=? ORDER BY version", (part, entry)
                )
                for first, count, left in json.loads(told)
            )
            end = (part, newest if end_version is None else end_version)
            complete = reason in ("done", "exit")
            before = made.get(number)
            if before is None:
                made[number] = Chapter(number, header, place, json.loads(spec), bytes(generators), (), end, complete)
            merged = tuple(sorted((*made[number].spans, *spans), key=lambda span: span.first))
            made[number] = replace(made[number], spans=merged, end=end, complete=complete)
    last = max(made, default=0)
    # one that another followed was complete, whatever the kernel called its end
    return [replace(c, complete=c.complete or c.number < last) for _, c in sorted(made.items())]


def asked(conn: sqlite3.Connection, run_id: str) -> dict[str, Any]:
    row = conn.execute("SELECT asked FROM resumes WHERE run_id=?", (run_id,)).fetchone()
    found: dict[str, Any] = json.loads(row[0]) if row is not None else {}
    return found


def source_of(conn: sqlite3.Connection, run_id: str) -> str:
    """The cell's text."""
    return str(conn.execute("SELECT source FROM runs WHERE run_id=?", (run_id,)).fetchone()[0])


def money_of(conn: sqlite3.Connection, run_id: str) -> tuple[dict[str, Any] | None, int]:
    """(the budget as the user gave it, DPN base units spent)."""
    budget, spent = conn.execute("SELECT budget, spent_units FROM runs WHERE run_id=?", (run_id,)).fetchone()
    return None if budget is None else json.loads(budget), int(spent)


def work_of(conn: sqlite3.Connection, runs: Sequence[str]) -> tuple[int, int]:
    """(iterations, samples) that these runs merged."""
    sql = "SELECT COALESCE(SUM(iterations), 0), COALESCE(SUM(samples), 0) FROM merges WHERE run_id=?"
    rows = [conn.execute(sql, (run_id,)).fetchone() for run_id in runs]
    return sum(int(a) for a, _ in rows), sum(int(b) for _, b in rows)


def version_of(conn: sqlite3.Connection, run_id: str) -> int:
    return int(conn.execute("SELECT version FROM runs WHERE run_id=?", (run_id,)).fetchone()[0])


def versions_of(conn: sqlite3.Connection, run_id: str) -> set[int]:
    """Versions of an ended run that are still of use: the newest, and those at the ends of loop entries as long as it can be resumed."""
    found = {int(row[0]) for row in conn.execute("SELECT version FROM runs WHERE run_id=?", (run_id,))}
    if is_kept(conn, run_id):
        sql = "SELECT end_version FROM sites WHERE run_id=? AND end_version IS NOT NULL"
        found.update(int(row[0]) for row in conn.execute(sql, (run_id,)))
    return found


def logs_of(conn: sqlite3.Connection, run_id: str) -> set[str]:
    """The files of a run's logs."""
    return {str(row[0]) for row in conn.execute("SELECT file FROM replays WHERE run_id=?", (run_id,))}


def kept(conn: sqlite3.Connection) -> list[str]:
    """Runs of which logs or snapshots are kept."""
    return [str(row[0]) for row in conn.execute("SELECT run_id FROM resumes WHERE kept=1")]


def is_kept(conn: sqlite3.Connection, run_id: str) -> bool:
    row = conn.execute("SELECT kept FROM resumes WHERE run_id=?", (run_id,)).fetchone()
    return row is not None and bool(row[0])


def kept_bytes(conn: sqlite3.Connection, run_id: str) -> int:
    return int(conn.execute("SELECT COALESCE(SUM(nbytes), 0) FROM replays WHERE run_id=?", (run_id,)).fetchone()[0])


def offer(path: Path, *, now: float, hub_lives: bool) -> str | None:
    """One sentence on the newest run that was cut short within the last week and can go on; None when there is none.

    Never raises for a journal that can't be read: whoever uses it next is told.
    """
    try:
        conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)
    except sqlite3.Error:
        return None
    try:
        if not has_tables(conn):
            return None
        lost = "s.cut=1 OR s.lost_at IS NOT NULL" + ("" if hub_lives else " OR r.ended_at IS NULL")
        unended = "r.ended_at IS NOT NULL OR s.lost_at IS NOT NULL"
        sql = _HEADS.replace(unended, "1") if not hub_lives else _HEADS
        row = conn.execute(
            f"{sql} AND ({lost}) AND COALESCE(r.ended_at, s.lost_at, r.started_at) > ? ORDER BY r.started_at DESC, r.rowid DESC LIMIT 1",
            (now - RECENT_S,),
        ).fetchone()
        if row is None:
            return None
        run_id = str(row[0])
        last = chapters(conn, run_id)[-1]
        return (
            f"{run_id} was cut short at iteration {last.contiguous:,} of loop pass {last.number}:"
            f" `%%depin train --resume {run_id}` on top of the same cell continues it."
        )
    except (sqlite3.Error, ValueError, IndexError):
        return None
    finally:
        conn.close()
