"""`depin runs export` and `import`: a run leaves one state folder as a folder of its own and enters another, where it can be resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from depin_nb.core.amount import Amount
from depin_nb.core.codec import MAX_HEADER_BYTES, decode, encode
from depin_nb.core.errors import CodecError, DepinError, RunFolderError
from depin_nb.core.events import Event
from depin_nb.core.lease import EntrySpec
from depin_nb.core.status import ENDED, Status
from depin_nb.core.storage import disk_full, is_full
from depin_nb.hub.records.blobs import write_atomic
from depin_nb.hub.records.checking import check
from depin_nb.hub.records.journal import Journal
from depin_nb.hub.records.rows import TABLES, Row, RunRows, columns, wrong_type
from depin_nb.hub.records.run_folder import MANIFEST, ROWS, FileFact, Manifest, copy, fact_of, read_bounded, read_manifest
from depin_nb.ledger import store

_DIGEST = re.compile(r"[0-9a-f]{64}")
INT_RANGE = range(-(2**63), 2**63)  # what SQLite holds
#: rows that never change once a run is settled: by these a run that is here already is told from another one of the same name
SAME = ("merges", "leases", "ledger_receipts")


# --- export -------------------------------------------------------------------------------------------------


def export_run(home: Path, run_id: str, to: Path) -> Path:
    """Writes `to`/<run>: everything that another hub needs to go on with it. Changes nothing in `home`.

    Raises NoSuchRun, RunFolderError for a run that goes on or owes something, DiskFull.
    """
    journal = Journal(home / "journal.sqlite", writing=False)
    try:
        parts = journal.rows(run_id)
    finally:
        journal.close()
    for part in parts:
        _refuse_unsettled(part)
    names = [name for part in parts for name in _files_of(home, part)]
    final = to / run_id
    if final.exists():
        raise RunFolderError(f"{final} is there already", hint="Name another folder, or move that one away.", path=str(final))
    temporary = to / f".{run_id}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True, mode=0o700)
        facts = []
        for name in dict.fromkeys(names):
            facts.append(fact_of(home, name))
            copy(home, facts[-1], temporary / name)
        data = encode({part.run_id: part.rows for part in parts})
        if len(data) > MAX_HEADER_BYTES:
            raise RunFolderError(f"{run_id} has more rows than a folder holds ({len(data):,} bytes)", path=str(final))
        write_atomic(temporary / ROWS, data)
        facts.append(fact_of(temporary, ROWS))
        write_atomic(temporary / MANIFEST, Manifest(tuple(p.run_id for p in parts), tuple(facts)).to_bytes())
        read_manifest(temporary)  # what is too large to be read again is said here, not there
        temporary.rename(final)
    except OSError as error:
        raise _unwritten(error, to) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _refuse_unsettled(part: RunRows) -> None:
    run = part["runs"][0] if part["runs"] else None
    if part.broken or run is None:
        raise RunFolderError(f"the journal's rows of {part.run_id} are damaged", hint=f"`depin runs check {part.run_id}` shows them.")
    if run["ended_at"] is None or not run["settled"] or run["state"] not in ENDED:
        raise RunFolderError(
            f"{part.run_id} hasn't ended here, or still owes its workers",
            hint=f"`depin stop {part.run_id}` ends it; after a killed hub, `depin up` settles what it left. Then export it.",
            run_id=part.run_id,
        )


def _files_of(home: Path, part: RunRows) -> list[str]:
    """Its files, as their names in a state folder; those that aren't kept any more are left out."""
    run_id = part.run_id
    kept = {row["file"] for row in part["replays"]}
    names = [f"states/{run_id}/{p.name}" for p in (home / "states" / run_id).glob("v*") if p.suffix in (".state", ".outer")]
    names += [f"replays/{run_id}/{p.name}" for p in (home / "replays" / run_id).glob("v*.logs") if f"{run_id}/{p.name}" in kept]
    checkpoints = home / "runs" / run_id / "checkpoints"
    names += [f"runs/{run_id}/checkpoints/{p.parent.name}/{p.name}" for p in checkpoints.glob("[0-9]*/*")]
    specs = [json.loads(row["spec"]) for row in part["entries"]]
    digests = dict.fromkeys(d for spec in specs for d in (spec["program"], *spec["blobs"]))
    return [*names, *(f"blobs/{d}" for d in digests if _DIGEST.fullmatch(d) and (home / "blobs" / d).is_file())]


# --- import -------------------------------------------------------------------------------------------------


def import_run(home: Path, folder: Path) -> str:
    """Takes a run's folder into the state folder `home`; returns the run's id. Files first, then all rows in one transaction.

    What is in the folder is checked, never executed or unpickled. Raises RunFolderError with nothing changed, JournalError, DiskFull.
    """
    manifest = read_manifest(folder)
    fact = next((f for f in manifest.files if f.name == ROWS), None)
    if fact is None:
        raise RunFolderError(f"{folder} has no rows", path=str(folder))
    parts = _believed(folder, manifest, read_bounded(folder, ROWS, fact.nbytes))
    journal = Journal(home / "journal.sqlite")
    copied: list[Path] = []
    try:
        new = [part for part in parts if not _is_here(journal, part)]
        if not new:
            raise RunFolderError(f"{manifest.run_id} is here already", hint=f"`depin runs check {manifest.run_id}` proves it.")
        fresh = {part.run_id for part in new}
        for each in manifest.files:
            if each.name != ROWS and _wanted(each, fresh) and not (home / each.name).exists():
                copied.append(home / each.name)
                copy(folder, each, home / each.name)
        with journal.transaction() as connection:
            for part in new:
                _insert(connection, part)
                journal.add_events([Event(part.run_id, "imported", time.time(), {"text": "It came from another hub, where it was paid."})])
    except BaseException as error:
        for path in copied:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritten(error, home) from error
        raise
    finally:
        journal.close()
    return manifest.run_id


def _wanted(fact: FileFact, fresh: set[str]) -> bool:
    kind, name, *_ = fact.name.split("/")
    return kind == "blobs" or name in fresh


def _is_here(journal: Journal, part: RunRows) -> bool:
    """Whether the journal has this run already. Raises RunFolderError for another one of the same name."""
    with journal.reading() as connection:
        if connection.execute("SELECT 1 FROM runs WHERE run_id=?", (part.run_id,)).fetchone() is None:
            return False
    here = journal.rows(part.run_id)[-1]
    if any(here[table] != part[table] for table in SAME):
        raise RunFolderError(f"there is another {part.run_id} here already", hint="Import it into a state folder of its own (DEPIN_HOME).")
    return True


def _insert(connection: sqlite3.Connection, part: RunRows) -> None:
    for table in TABLES:
        names = columns(table)
        places = ", ".join("?" for _ in names)
        rows = [[row[name] for name in names] for row in part[table]]
        connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})", rows)


def _believed(folder: Path, manifest: Manifest, data: bytes) -> list[RunRows]:
    """The folder's rows by value, checked as far as anything here relies on them. Raises RunFolderError."""
    files = {fact.name for fact in manifest.files}
    try:
        value = decode(data)
        if type(value) is not dict or list(value) != list(manifest.parts):
            raise ValueError("its rows aren't those of its runs")
        parts = [_part(run_id, value[run_id], manifest.parts[:place], files) for place, run_id in enumerate(manifest.parts)]
    except (CodecError, DepinError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise RunFolderError(f"{folder} isn't a run's folder: {error}", path=str(folder)) from error
    report = check(parts)
    if not report.ok:
        first = report.problems[0]
        raise RunFolderError(f"{manifest.run_id} isn't what it says: {first.where}: {first.what}", path=str(folder))
    return parts


def _part(run_id: str, tables: Any, before: tuple[str, ...], files: set[str]) -> RunRows:
    if type(tables) is not dict or set(tables) != set(TABLES):
        raise ValueError(f"the tables of {run_id} aren't a journal's")
    rows: dict[str, list[Row]] = {}
    for table, given in tables.items():
        names = set(columns(table))
        if type(given) is not list or not all(type(row) is dict and set(row) == names for row in given):
            raise ValueError(f"the rows of {table} are malformed")
        for row in given:
            if name := wrong_type(table, row):
                raise ValueError(f"a row of {table} has a {name} of another type")
            if row["run_id"] != run_id or any(type(v) is int and v not in INT_RANGE for v in row.values()):
                raise ValueError(f"a row of {table} isn't one of {run_id}")
        rows[table] = [dict(row) for row in given]
    (run,), (book,) = rows["runs"], rows["ledger_runs"]
    if run["ended_at"] is None or run["settled"] != 1 or run["state"] not in ENDED or book["state"] != store.SETTLED:
        raise ValueError(f"{run_id} hasn't ended, or wasn't paid, where it comes from")
    _texts(rows)
    # paths are this hub's own, whatever the rows say
    run["started_at"] = min(run["started_at"], time.time())
    run["state_file"] = _state_name(run_id, run["version"]) if run["state_file"] else ""
    for merge in rows["merges"]:
        merge["state_file"] = _state_name(run_id, merge["version"])
    for replay in rows["replays"]:
        replay["file"] = f"{run_id}/v{replay['version']:06d}.logs"
        if f"replays/{replay['file']}" not in files:
            raise ValueError(f"{replay['file']} is missing")
    if run["state_file"] and run["state_file"] not in files:
        raise ValueError(f"{run['state_file']} is missing")
    continues = [row["continues"] for row in rows["resumes"]]
    if continues != [before[-1] if before else None]:
        raise ValueError(f"{run_id} doesn't continue the run before it")
    return RunRows(run_id, rows)


def _state_name(run_id: str, version: int) -> str:
    return f"states/{run_id}/v{version:06d}.state"


def _texts(rows: dict[str, list[Row]]) -> None:
    """Opens every text that is JSON as those who read it later will: what they couldn't read is refused here."""
    (run,) = rows["runs"]
    if run["budget"] is not None:
        Amount.from_dict(json.loads(run["budget"]))
    if run["summary"] is not None and Status.from_dict(json.loads(run["summary"])).run_id != run["run_id"]:
        raise ValueError("the summary is another run's")
    for row in rows["entries"]:
        spec = EntrySpec.from_dict(json.loads(row["spec"]))
        if not all(type(d) is str and _DIGEST.fullmatch(d) for d in (spec.program, *spec.blobs)):
            raise ValueError("an entry names what is no blob")
    for row in rows["merges"]:
        for x, y in json.loads(row["losses"]):
            float(x), float(y)
    for row in rows["replays"]:
        for first, count, left in json.loads(row["spans"]):
            if type(first) is not int or type(count) is not int or type(left) is not str:
                raise ValueError("what is kept for a resume is malformed")
    for table, name in (("events", "data"), ("resumes", "asked")):
        if not all(type(json.loads(row[name])) is dict for row in rows[table]):
            raise ValueError(f"{table} are malformed")


def _unwritten(error: OSError, path: Path) -> DepinError:
    if is_full(error, path):
        return disk_full(path)
    return RunFolderError(f"{error.filename or path} can't be written: {error.strerror}", path=str(path))
