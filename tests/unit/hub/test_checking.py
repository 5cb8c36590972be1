"""`depin runs check`: a run of the real coordinator is proven; whatever is damaged in its rows afterwards is found."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.cli import main
from depin_nb.core.errors import NoSuchRun, VerificationError
from depin_nb.hub.records.checking import CheckReport, check
from depin_nb.hub.records.journal import Journal
from depin_nb.hub.records.rows import TABLES, columns
from depin_nb.jupyter import magic

from .fleet import LOCAL, SOLO, SYNC, FakeWorker, Kernel, first_state, hub_in
from .test_resuming import merged_until, resumed

#: what of the rows is proven; the rest is for people, or proven elsewhere (signed bytes, by `ledger verify`);
#: on which version a lease was lent is only held to be not too long before its merge, for a late one counts too
PROVEN = {
    "runs": ["version", "spent_units"],
    "entries": ["entry", "base_version", "spec"],
    "merges": ["version", "entry", "base_version", "iterations", "samples"],
    "leases": ["lease_id", "entry", "worker_id", "version", "state", "units", "done", "flops", "units_dpn", "cost_units"],
    "ledger_runs": ["session", "root"],
    "ledger_receipts": ["position", "lease_id", "body"],
    "ledger_vouchers": ["worker_id", "wallet", "units", "sequence", "root", "signature"],
    "ledger_payouts": ["wallet", "units"],
}
CHOSEN = [(table, column) for table, names in PROVEN.items() for column in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A journal with a run that was cut short in its second pass and the one that continues it: local with a lost lease, solo, sync."""
    home = tmp_path_factory.mktemp("home")

    async def main() -> tuple[str, str]:
        async with hub_in(home) as hub:
            dying = FakeWorker(hub, "b", act=lambda lease: "die" if lease.entry_id == 2 else None).start()
            FakeWorker(hub, "a").start()
            first = await Kernel.open(hub)
            await first.enter(hub.spec(LOCAL, 24), first_state())
            await first.loop(24)
            state = await first.close()
            await first.enter(hub.spec(SOLO, 30), state)
            dying.act = lambda lease: None
            await merged_until(first, 30, 5)
            second, answer = await resumed(hub, first.run_id)
            done = answer["past"][1]["merged"]
            spec = hub.spec(SOLO, 30, first=done)
            newest = (await second.ops.kept(second.run_id, 2))["state"]
            opened = await second.ops.entry_open(second.run_id, spec.to_dict(), newest, {"number": 2})
            second.entry = opened["entry"]
            await second.loop(30, first=done)
            await second.close()
            await second.enter(hub.spec(SYNC, 16), None)
            await second.loop(16)
            await second.close()
            await second.finish()
            return first.run_id, second.run_id

    return (home, *asyncio.run(asyncio.wait_for(main(), 60)))


def checked(path: Path, run_id: str) -> CheckReport:
    journal = Journal(path, writing=False)
    try:
        return check(journal.rows(run_id))
    finally:
        journal.close()


@pytest.fixture
def copied(made: tuple[Path, str, str], tmp_path: Path) -> tuple[Path, str, str]:
    home, old, new = made
    for file in home.glob("journal.sqlite*"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / "journal.sqlite", old, new


def test_what_the_coordinator_wrote_is_proven(copied: tuple[Path, str, str]):
    path, old, new = copied
    report = checked(path, new)
    assert report.problems == ()
    assert report.parts == (old, new)
    assert [(p.number, p.merged, p.total, p.open) for p in report.passes] == [(1, 24, 24, 0), (2, 30, 30, 0), (3, 16, 16, 0)]
    assert report.passes[1].runs == (old, new)
    half = checked(path, old)
    assert half.problems == ()
    assert half.passes[1].open == 30 - half.passes[1].merged > 0


@pytest.mark.parametrize(("strategy", "back", "good"), [("local", 3, True), ("local", 6, False), ("sync", 1, True), ("sync", 2, False)])
def test_a_change_from_too_far_back_is_noticed(copied: tuple[Path, str, str], strategy: str, back: int, good: bool):
    path, _, new = copied
    conn = sqlite3.connect(path)
    found = conn.execute(
        "SELECT lease_id, version FROM leases JOIN entries USING (run_id, entry) WHERE version IS NOT NULL"
        " AND json_extract(spec, '$.strategy.name')=? AND NOT json_extract(spec, '$.strategy.solo') ORDER BY version DESC",
        (strategy,),
    ).fetchone()
    conn.execute("UPDATE leases SET base_version=? WHERE lease_id=?", (found[1] - back, found[0]))
    conn.commit()
    conn.close()
    said = [p for p in checked(path, new).problems if p.where == f"leases {found[0]}"]
    assert (not said) == good, said
    assert good or strategy == "local" or "0 merges late are allowed" in said[0].what


def test_a_schema_that_grows_is_noticed(copied: tuple[Path, str, str]):
    conn = sqlite3.connect(copied[0])
    for table in TABLES:
        have = [row[1] for row in conn.execute(f"PRAGMA table_info({table})")]
        assert [name for name in have if name not in ("id", "number") or table == "sites"] == columns(table), table
    conn.close()


def other(value: Any, column: str, draw: Any) -> Any:
    """A value that isn't this one, of the same type or of another."""
    if column in ("units", "spec") and isinstance(value, str):
        data = json.loads(value)
        if column == "spec":
            return json.dumps({**data, draw(st.sampled_from(["first", "total"])): draw(st.sampled_from([-1, "x"]))})
        data[0][draw(st.sampled_from([0, 1]))] -= 1
        return draw(st.sampled_from([json.dumps(data), "[[0, 9223372036854775807, 1]]", "[[0, 5, 0]]", "nothing", "[" * 2000]))
    if isinstance(value, int):
        return draw(st.sampled_from([value + 1, value - 1, value + 2**40, -value - 1, "x"]))
    if isinstance(value, bytes):
        at = draw(st.integers(0, len(value) - 1))
        return value[:at] + bytes([value[at] ^ 1 << draw(st.integers(0, 7))]) + value[at + 1 :]
    return draw(st.sampled_from(["open", "discarded", "merged", "x", b"y", None]).filter(lambda v: v != value))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_damage_is_found(made: tuple[Path, str, str], data: st.DataObject):
    home, old, new = made
    source = sqlite3.connect(f"{(home / 'journal.sqlite').as_uri()}?mode=ro", uri=True)
    conn = sqlite3.connect(":memory:")
    source.backup(conn)
    source.close()
    table, column = data.draw(st.sampled_from(CHOSEN))
    run_id = data.draw(st.sampled_from([old, new]))
    # a lease that came to nothing is in no model and no bill: what its row says proves nothing
    only = " AND state IN ('paid', 'discarded_paid')" if table == "leases" else ""
    rows = conn.execute(f"SELECT rowid, {column} FROM {table} WHERE run_id=?{only}", (run_id,)).fetchall()
    number, value = data.draw(st.sampled_from(rows))
    how = data.draw(st.sampled_from(["change", "delete"])) if table != "runs" else "change"
    try:
        if how == "delete":
            conn.execute(f"DELETE FROM {table} WHERE rowid=?", (number,))
        else:
            changed = other(value, column, data.draw)
            conn.execute(f"UPDATE {table} SET {column}=? WHERE rowid=?", (changed, number))
    except sqlite3.IntegrityError:
        return  # the database itself refuses it
    from depin_nb.hub.records import resumable
    from depin_nb.hub.records.rows import rows_of

    parts = [rows_of(conn, part) for part in resumable.chain(conn, new)]
    assert not check(parts).ok
    conn.close()


def test_it_names_the_row_and_exits_with_1(copied: tuple[Path, str, str], capsys: Any, monkeypatch: Any):
    path, _, new = copied
    monkeypatch.setenv("DEPIN_HOME", str(path.parent))
    assert main(["runs", "check", new]) == 0
    said = capsys.readouterr().out
    assert "proven: each iteration counts once" in said
    assert "30/30" in said
    with pytest.raises(NoSuchRun):
        checked(path, "run-none")
    conn = sqlite3.connect(path)
    (lease_id,) = conn.execute("SELECT lease_id FROM leases WHERE run_id=? AND version IS NOT NULL LIMIT 1", (new,)).fetchone()
    conn.execute("DELETE FROM leases WHERE lease_id=?", (lease_id,))
    conn.commit()
    conn.close()
    assert main(["runs", "check", new]) == 1
    said = capsys.readouterr().out
    assert f"ledger_receipts {lease_id}: the journal has no such lease" in said
    assert "in no merged lease" in said
    assert main(["runs", "check", new, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert any(lease_id in problem["where"] for problem in report["problems"])


def test_the_magic_shows_it_and_raises(copied: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch):
    path, old, new = copied
    monkeypatch.setenv("DEPIN_HOME", str(path.parent))
    shown: list[Any] = []
    monkeypatch.setattr(magic, "_display", shown.append)
    magics = magic.DepinMagics(shell=None)
    magics.depin(f"runs check {new}")
    assert "Proven: each iteration counts once" in shown[-1].text
    magics.depin(f"runs checkpoints {new}")
    assert f"Checkpoints of {new}" in shown[-1].text
    conn = sqlite3.connect(path)
    conn.execute("UPDATE runs SET spent_units = spent_units + 1 WHERE run_id=?", (old,))
    conn.commit()
    conn.close()
    with pytest.raises(VerificationError) as caught:
        magics.depin(f"runs check {new}")
    assert any("its receipts add up to" in problem for problem in caught.value.problems)
    assert "1 PROBLEM" in shown[-1].text
