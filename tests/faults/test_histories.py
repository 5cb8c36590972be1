"""2,000 fault histories on the real coordinator, journal, ledger, chain and worker runner, in this process, on virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from depin_nb.hub.records import blobs
from depin_nb.hub.records.journal import Journal
from depin_nb.testing import faults
from depin_nb.testing.histories import DEVICE_KINDS, HUB_DIES_AT, HUB_POINTS, History, history, shrunk
from depin_nb.testing.playing import Player

HISTORIES = 2000
EACH = 100  # seeds of one test: several processes share them


@pytest.fixture(scope="module")
def player():
    with Player() as made:
        yield made


@pytest.mark.parametrize("first", range(0, HISTORIES, EACH))
def test_every_promise_holds_whatever_happens(player: Player, first: int):
    struck = 0
    for seed in range(first, first + EACH):
        played = player.play(history(seed))
        if played.broken:
            smallest = player.play(shrunk(played.history, lambda plan: bool(player.play(plan).broken)))
            pytest.fail(str(smallest if smallest.broken else played))
        struck += len(played.struck)
    assert struck > EACH / 2, "too little went wrong: the test would show little"


def test_a_seed_is_one_history_told_the_same_way(player: Player):
    for seed in (3, 23, 124):
        assert history(seed) == history(seed)
        assert player.play(history(seed)).told == player.play(history(seed)).told


def test_the_seeds_have_every_kind_of_fault_at_every_kind_of_point():
    drawn = {(f.kind, f.point) for seed in range(HISTORIES) for f in history(seed).faults}
    assert {(kind, point) for kind, points in DEVICE_KINDS.items() for point in points} <= drawn
    assert {("kill", point) for point in HUB_POINTS} | {("hub", point) for point in HUB_DIES_AT} <= drawn


def full_disks() -> Iterator[History]:
    """Those whose disk is full while a file is written, and much else beside."""
    for seed in range(HISTORIES):
        plan = history(seed)
        if any((f.kind, f.point) == ("disk", "file: written") and f.lease < 5 for f in plan.faults) and len(plan.faults) > 2:
            yield plan


def half_written(path, data):
    """As files were written before: a full disk leaves a part behind."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        for part in [data] if isinstance(data, bytes) else data:
            file.write(part)
        blobs.os.fsync(file.fileno())
    temporary.replace(path)


def test_a_file_that_is_left_is_found_and_the_history_made_smaller(player: Player, monkeypatch: pytest.MonkeyPatch):
    plans = [plan for _, plan in zip(range(20), full_disks(), strict=False)]
    assert not any(player.play(plan).broken for plan in plans)
    monkeypatch.setattr("depin_nb.hub.records.blobs.write_atomic", half_written)
    monkeypatch.setattr("depin_nb.hub.versions.states.write_atomic", half_written)
    monkeypatch.setattr("depin_nb.hub.records.replays.write_atomic", half_written)
    monkeypatch.setattr("depin_nb.hub.records.blobs.BlobStore.prune", lambda self: None)
    # a notebook that goes on may write the same file again: then nothing is left
    plan = next(plan for plan in plans if any(".tmp is left" in what for what in player.play(plan).broken))
    smallest = shrunk(plan, lambda p: bool(player.play(p).broken))
    assert len(smallest.faults) < len(plan.faults)
    assert "disk" in {f.kind for f in smallest.faults}
    said = str(player.play(smallest))
    assert f"python -m depin_nb.testing.faults {plan.seed} --faults {','.join(map(str, smallest.kept))} -v" in said
    assert "BROKEN" in said


def test_a_merge_without_its_receipt_is_found(player: Player, monkeypatch: pytest.MonkeyPatch):
    plan = history(0).only([])
    assert not player.play(plan).broken
    monkeypatch.setattr("depin_nb.ledger.ledger.Ledger.record", lambda self, conn, receipt: None)
    assert any("receipts and leases differ" in what for what in player.play(plan).broken)


def test_a_model_that_holds_work_twice_is_found(player: Player, monkeypatch: pytest.MonkeyPatch):
    add = Journal.add_leases

    def some(self, run_id, rows):
        add(self, run_id, [row for row in rows if row.version is None or row.version > 1])

    monkeypatch.setattr(Journal, "add_leases", some)
    found = player.play(history(0).only([])).broken
    assert any("the model holds" in what for what in found)
    assert any("its leases hold 0" in what for what in found)


def test_the_command_line_plays_seeds(capsys: pytest.CaptureFixture[str]):
    assert faults.main(["0", "--faults", "-", "-v"]) == 0
    said = capsys.readouterr().out
    assert "history 0:" in said
    assert "run-0-1" in said
    assert "0 of 1 histories broke a promise" in said
