"""The journal file: all or nothing, readable beside the hub and without one, clear about what it can't use."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from depin_nb.core.errors import JournalError, NoSuchRun
from depin_nb.core.events import Event
from depin_nb.hub.records.blobs import BlobStore
from depin_nb.hub.records.journal import SCHEMA_VERSION, Journal, LeaseRow, MergeRow
from depin_nb.hub.records.rows import spans_of
from depin_nb.hub.versions.states import StateFiles


def filled(path: Path) -> Journal:
    journal = Journal(path)
    with journal.transaction():
        journal.add_run("run-1", name="n", where="w", source="s", strategy="local", backend="depin", budget={"units": 5}, at=1.0)
        journal.add_entry("run-1", 1, {"total": 9}, 0, "states/run-1/v000000.state", 2.0)
        journal.add_merge("run-1", MergeRow(1, 1, 0, 4, 8, ((0.0, 2.0), (1.0, 1.5)), "states/run-1/v000001.state", 3.0))
        journal.add_leases(
            "run-1",
            [
                LeaseRow("a", 1, "w0", 0, 1, "merged", ((0, 6, 2),), 2, 3.0),
                LeaseRow("b", 1, "w1", 0, 1, "merged", ((1, 2, 1), (3, 4, 1)), 2, 3.0),
                LeaseRow("c", 1, "w1", 0, None, "discarded", ((9, 12, 1),), 3, 3.0),
                LeaseRow("d", 1, "w1", 0, None, "open", ((9, 12, 1),), 0, 3.0, reason="lost"),
            ],
        )
        journal.add_events([Event("run-1", "merged", 3.0, {"version": 1})])
    return journal


def test_what_was_written_is_read(tmp_path: Path):
    with_hub = filled(tmp_path / "j.sqlite")
    for journal in (with_hub, Journal(tmp_path / "j.sqlite", writing=False)):
        run = journal.run("run-1")
        assert (run.name, run.where, run.budget, run.state, run.version, run.settled) == ("n", "w", {"units": 5}, "running", 1, False)
        assert run.losses == ((0.0, 2.0), (1.0, 1.5))
        assert [m.version for m in run.merges] == [1]
        assert journal.merged_units("run-1", 1) == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
        assert journal.events("run-1") == [Event("run-1", "merged", 3.0, {"version": 1})]
        assert [r.run_id for r in journal.runs()] == ["run-1"]
        assert journal.unfinished() == (["run-1"], [])
        with pytest.raises(NoSuchRun):
            journal.run("run-2")
        journal.close()


def test_paying_moves_only_what_is_owed(tmp_path: Path):
    journal = filled(tmp_path / "j.sqlite")
    with journal.transaction():
        journal.end_run("run-1", state="finished", message="", at=4.0)
    assert journal.unfinished() == ([], ["run-1"])
    with journal.transaction():
        journal.paid("run-1")
    assert journal.unfinished() == ([], ["run-1"]), "its last status isn't there yet"
    with journal.transaction():
        journal.set_summary("run-1", {})
    assert {i: s for i, s, _ in journal.leases("run-1")} == {"a": "paid", "b": "paid", "c": "discarded_paid", "d": "open"}
    assert journal.unfinished() == ([], [])
    assert len(journal.merged_units("run-1", 1)) == 4, "paid leases still count"
    journal.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path):
    journal = filled(tmp_path / "j.sqlite")

    def fail_after_writing() -> None:
        with journal.transaction():
            journal.end_run("run-1", state="failed", message="", at=4.0)
            _ = 1 / 0

    def merge_twice() -> None:
        with journal.transaction():
            journal.add_merge("run-1", MergeRow(2, 1, 1, 1, 1, (), "x", 4.0))
            journal.add_merge("run-1", MergeRow(2, 1, 1, 1, 1, (), "x", 4.0))

    with pytest.raises(ZeroDivisionError):
        fail_after_writing()
    assert journal.run("run-1").state == "running"
    with pytest.raises(JournalError):
        merge_twice()
    assert journal.run("run-1").version == 1
    journal.close()


def test_it_is_durable_and_concurrent(tmp_path: Path):
    journal = Journal(tmp_path / "j.sqlite")
    assert journal.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal.connection.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "j.sqlite"
    path.write_bytes(content)
    with pytest.raises(JournalError) as caught:
        Journal(path)
    assert caught.value.path == str(path)
    assert caught.value.hint


def test_a_newer_or_missing_file_is_refused(tmp_path: Path):
    path = tmp_path / "j.sqlite"
    with pytest.raises(JournalError, match="no journal"):
        Journal(path, writing=False)
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(JournalError, match="newer"):
        Journal(path)
    with pytest.raises(JournalError):
        Journal(tmp_path / "nowhere" / "j.sqlite")


def test_spans_hold_any_lease():
    for indices in ([], [4], [4, 5, 6], [1, 4, 7], [1, 2, 4], [0, 9, 10]):
        assert [i for start, stop, step in spans_of(indices) for i in range(start, stop, step)] == indices


def test_states_and_blobs_on_disk(tmp_path: Path):
    journal, states = filled(tmp_path / "j.sqlite"), StateFiles(tmp_path / "states")
    with pytest.raises(JournalError, match="no weights"):
        journal.newest_state("run-1")
    for version in range(4):
        states.write("run-1", version, b"%d" % version)
    assert journal.newest_state("run-1").read_bytes() == b"1"
    states.prune("run-1", {1, 3})
    assert sorted(p.name for p in (tmp_path / "states" / "run-1").iterdir()) == ["v000001.state", "v000003.state"]
    assert states.read("run-1", 3) == b"3"
    journal.close()

    blobs = BlobStore(tmp_path / "blobs")
    digest = blobs.put(b"x")
    assert blobs.put(b"x") == digest
    assert blobs.missing([digest, "a" * 64, "a" * 64]) == ["a" * 64]
    for wrong in ("../../etc/passwd", "A" * 64, "", 5):
        with pytest.raises(Exception, match="digest"):
            blobs.get(wrong)
    blobs.prune(unused_s=-10)
    assert blobs.missing([digest]) == [digest]
