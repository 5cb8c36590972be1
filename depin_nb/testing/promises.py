"""What must hold after whatever happened: read from the journal, the ledger, the chain and the files alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from depin_nb.hub.records import resumable

from ..core.state import State
from ..hub.records.journal import Journal, RunRow
from ..ledger import store
from ..ledger.verify import verify_run
from ..training.lifecycle import FINAL, LeaseState
from ..training.strategy import MAX_STALENESS
from .devices import step

CAME_TO_NOTHING = LeaseState.OPEN.value  # its units went back


def broken(home: Path, chain: Any, *, counted: bool = True) -> list[str]:
    """Every promise that the state folder of an ended hub breaks, in words. `counted`: whether the models count their iterations."""
    journal = Journal(home / "journal.sqlite", writing=False)
    try:
        found: list[str] = []
        rows = journal.runs()
        for row in rows:
            found += [f"{row.run_id}: {what}" for what in _run(journal, row, home, chain, counted)]
        return found + _files(journal, rows, home)
    finally:
        journal.close()


def merged_of_chain(home: Path, run_id: str) -> list[int]:
    """Indices of all iterations that a run of one pass and those which it continues merged, with repetitions."""
    journal = Journal(home / "journal.sqlite", writing=False)
    try:
        parts = resumable.chain(journal.connection, run_id)
        entries = [
            (part, entry) for part in parts for (entry,) in journal.connection.execute("SELECT entry FROM entries WHERE run_id=?", (part,))
        ]
        return sorted(i for part, entry in entries for i, _ in journal.merged_units(part, entry))
    finally:
        journal.close()


def _run(journal: Journal, row: RunRow, home: Path, chain: Any, counted: bool) -> list[str]:
    conn, found = journal.connection, []
    if row.ended_at is None:
        found.append("it never ended")
    if not row.settled:
        found.append("it isn't settled")
    (spent, reserved) = conn.execute("SELECT spent_units, reserved_units FROM runs WHERE run_id=?", (row.run_id,)).fetchone()
    if reserved:
        found.append(f"{reserved} base units are still reserved")
    found += _leases(journal, row.run_id)
    found += _versions(journal, row)
    found += _money(journal, row, spent, chain)
    return found + (_model(journal, row, home) if counted else [])


def _leases(journal: Journal, run_id: str) -> list[str]:
    found = []
    final = {state.value for state in FINAL} | {CAME_TO_NOTHING}
    for lease_id, state, _ in journal.leases(run_id):
        if state not in final:
            found.append(f"lease {lease_id} is left {state}")
    for (entry,) in journal.connection.execute("SELECT entry FROM entries WHERE run_id=?", (run_id,)):
        twice = [i for i, n in Counter(i for i, _ in journal.merged_units(run_id, entry)).items() if n > 1]
        if twice:
            found.append(f"iterations {twice} of entry {entry} are in several merged leases")
    return found


def _versions(journal: Journal, row: RunRow) -> list[str]:
    found = []
    bases = [b for (b,) in journal.connection.execute("SELECT base_version FROM entries WHERE run_id=? ORDER BY entry", (row.run_id,))]
    merges = {m.version: m for m in journal.run(row.run_id).merges}
    known = set(bases) | set(merges)
    if known and (sorted(known) != list(range(max(known) + 1)) or row.version != max(known)):
        found.append(f"versions {sorted(known)} don't chain up to {row.version}")
    for merge in merges.values():
        if not (merge.base_version < merge.version and merge.base_version in known):
            found.append(f"version {merge.version} is built on {merge.base_version}, which isn't there")
        late = journal.connection.execute(
            "SELECT COUNT(*) FROM leases WHERE run_id=? AND version=? AND base_version < ?",
            (row.run_id, merge.version, merge.base_version - MAX_STALENESS),
        ).fetchone()
        if late[0]:
            found.append(f"version {merge.version} holds changes of more than {MAX_STALENESS} merges back")
        held = journal.connection.execute(
            "SELECT COALESCE(SUM(done), 0), COUNT(*) FROM leases WHERE run_id=? AND version=?", (row.run_id, merge.version)
        ).fetchone()
        if held[0] != merge.iterations or not held[1]:
            found.append(f"version {merge.version} says {merge.iterations} iterations, its leases hold {held[0]}")
    return found


def _money(journal: Journal, row: RunRow, spent: int, chain: Any) -> list[str]:
    conn, found = journal.connection, []
    ledger = store.run(conn, row.run_id)
    leases = {
        lease: (done, units, -1 if version is None else version)
        for lease, done, units, version in conn.execute(
            "SELECT lease_id, done, units_dpn, version FROM leases WHERE run_id=? AND done > 0", (row.run_id,)
        )
    }
    receipts = {r.lease_id: (r.count, r.units_dpn, r.version) for r in store.receipts(conn, row.run_id)}
    if receipts != leases:
        odd = sorted(set(receipts.items()) ^ set(leases.items()))
        found.append(f"receipts and leases differ: {odd[:4]}")
    total = sum(units for _, units, _ in receipts.values())
    if total != spent:
        found.append(f"{spent} base units are said to be spent, the receipts come to {total}")
    if ledger is None:
        if receipts:
            found.append("it has receipts and no vault")
    else:
        if ledger.state != store.SETTLED:
            found.append(f"its vault is {ledger.state}")
        if ledger.capped and total > ledger.budget_units:
            found.append(f"{total} base units are owed and the budget is {ledger.budget_units}")
        found += verify_run(row.run_id, conn, chain).problems
    return found


def _model(journal: Journal, row: RunRow, home: Path) -> list[str]:
    """The newest version holds each iteration that the journal has as merged, over all runs of its chain, once."""
    conn = journal.connection
    if row.version < 0:
        return []
    path = home / "states" / row.run_id / f"v{row.version:06d}.state"
    if not path.exists():
        return [f"version {row.version} is named and not there"]
    state = State.from_bytes(path.read_bytes())
    count = state.tensors["count"]
    expected = torch.zeros_like(count)
    for part in resumable.chain(conn, row.run_id):
        rows = conn.execute("SELECT entry, spec FROM entries WHERE run_id=? ORDER BY entry", (part,)).fetchall()
        for entry, text in rows:
            spec = json.loads(text)
            total = len(count) // _passes(conn, row.run_id)
            for index, _ in journal.merged_units(part, entry):
                expected[spec["seed"] * total + index] += 1
    found = []
    if not torch.equal(count, expected):
        found.append(f"the model holds {count.tolist()}, the journal {expected.tolist()}")
    if int(expected.max()) > 1:
        found.append(f"iterations are in the model more than once: {expected.tolist()}")
    if not all(bool(torch.isfinite(t).all()) for t in state.tensors.values() if t.is_floating_point()):
        found.append("the model isn't finite")
    return found if found else _trained(journal, row, state)


def _trained(journal: Journal, row: RunRow, state: State) -> list[str]:
    """The parameter is what the merged leases make of it: bit for bit for one worker; for whole values averaged, up to rounding."""
    conn = journal.connection
    parts = resumable.chain(conn, row.run_id)
    specs = [json.loads(s) for part in parts for (s,) in conn.execute("SELECT spec FROM entries WHERE run_id=? ORDER BY entry", (part,))]
    strategy, places = specs[0]["strategy"], torch.nonzero(state.tensors["count"]).flatten().tolist()
    expected = torch.zeros_like(state.tensors["model/w"])
    if strategy["solo"]:
        for place in places:
            expected += step(place)
        same = torch.equal(expected, state.tensors["model/w"])
        return [] if same else ["one worker's model isn't what doing its iterations in order gives"]
    if strategy["name"] != "local" or strategy["bits"] != 32 or len(parts) > 1:
        return []
    passes = _passes(conn, row.run_id)
    total = len(state.tensors["count"]) // passes
    seeds = {entry: json.loads(s)["seed"] for entry, s in conn.execute("SELECT entry, spec FROM entries WHERE run_id=?", (row.run_id,))}
    for merge in journal.run(row.run_id).merges:
        leases = conn.execute(
            "SELECT units, done, base_version FROM leases WHERE run_id=? AND version=?", (row.run_id, merge.version)
        ).fetchall()
        for spans, done, base in leases:
            indices = [i for a, b, c in json.loads(spans) for i in range(a, b, c)][:done]
            weight = done / merge.iterations / (1 + merge.base_version - base) ** 0.5  # late ones count less
            for index in indices:
                expected += step(seeds[merge.entry] * total + index) * weight
    same = torch.allclose(expected, state.tensors["model/w"], atol=1e-5)
    return [] if same else ["the model isn't the mean of what its merged leases changed"]


def _passes(conn: Any, run_id: str) -> int:
    """How many passes the run's program was made for: its name ends with it."""
    (name,) = conn.execute("SELECT name FROM runs WHERE run_id=?", (run_id,)).fetchone()
    return int(name.rsplit(" x ", 1)[1])


def _files(journal: Journal, rows: list[RunRow], home: Path) -> list[str]:
    found = [
        f"{p.relative_to(home)} is left" for p in [*home.rglob("*.tmp"), *(home / "parcels").glob("*"), *(home / "incoming").glob("*")]
    ]
    conn = journal.connection
    kept, known = set(resumable.kept(conn)), {row.run_id for row in rows}
    for path in (home / "replays").glob("*"):
        if path.name not in kept:
            found.append(f"the logs of {path.name} are left")
    named = {str(Path(r[0]).name) for r in conn.execute("SELECT file FROM replays")}
    for path in (home / "replays").glob("*/*.logs"):
        if path.name not in named:
            found.append(f"{path.relative_to(home)} is named by nothing")
    for run_id, file in conn.execute("SELECT run_id, file FROM replays"):
        if not (home / "replays" / file).exists():
            found.append(f"{run_id}: its logs {file} are gone")
    for folder in (home / "states").glob("*"):
        if folder.name not in known:
            found.append(f"the states of {folder.name} belong to nothing")
            continue
        newest = next(row.version for row in rows if row.run_id == folder.name)
        ends = {v for (v,) in conn.execute("SELECT end_version FROM sites WHERE run_id=?", (folder.name,)) if v is not None}
        wanted = {newest} | (ends if folder.name in kept else set())
        for path in folder.glob("*.state"):
            if int(path.stem[1:]) not in wanted:
                found.append(f"{path.relative_to(home)} is needed by nothing")
    return found
