"""`depin` without a hub: what it understands, its exit codes, and what it says."""

import json

import pytest

from depin_nb.cli import main
from depin_nb.cli.doctor import Check, checks
from depin_nb.cli.tables import columns, verified
from depin_nb.core import config
from depin_nb.hub.records.journal import Journal


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPIN_HOME", str(tmp_path))


@pytest.mark.parametrize(
    "words", [[], ["up"], ["down"], ["status"], ["scale"], ["runs"], ["run-info"], ["ledger"], ["ledger", "verify"], ["doctor"], ["hub"]]
)
def test_every_command_has_help(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    assert "usage: depin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["statsu"], "status"),
        (["up", "dpin"], "depin"),
        (["ledger", "verfy", "run-1"], "verify"),
        (["scale", "2", "--bakend"], "--backend"),
    ],
)
def test_unknown_words_are_answered_with_the_nearest(words, meant, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["scale", "-1"], ["scale", "two"], ["up", "--workers", "1.5"]])
def test_counts_are_whole_numbers(words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_without_a_hub_it_says_what_to_do(capsys):
    assert main(["status"]) == 1
    assert "depin up" in capsys.readouterr().err
    assert main(["scale", "2"]) == 1
    assert main(["down"]) == 0
    assert not config.hub_file().exists()


def test_journal_is_read_without_a_hub(capsys):
    assert main(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    assert main(["run-info", "run-1"]) == 1
    journal = Journal(config.journal_file())
    with journal.transaction():
        journal.add_run("run-1", name="digits", where="cell 1", source="", strategy="sync", backend="depin", budget=None, at=0.0)
        journal.end_run("run-1", state="finished", message="", at=2.5)
    journal.close()
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run_id"], row["state"]) == ("run-1", "finished")
    assert main(["run-info", "run-1"]) == 0
    shown = capsys.readouterr().out
    assert "digits" in shown
    assert "2.5 s" in shown
    assert main(["ledger", "show", "run-1"]) == 1
    assert main(["ledger", "verify", "run-1"]) == 1
    assert "run-1" in capsys.readouterr().err


def test_verification_says_plainly_when_it_fails():
    row = {"worker_id": "phone-1", "wallet": "W", "receipts": 2, "units_by_receipts": 10, "units_by_chain": 9, "signatures": ()}
    report = {"rows": [row], "chain": "embedded", "merkle_root": "ab", "refunded": 0, "problems": ["one less"], "ok": False}
    text = verified(report, str)
    assert "DIFFERS" in text
    assert "PROBLEM      one less" in text
    assert text.endswith("NOT VERIFIED")


def test_columns_align():
    assert columns([["a", "10"], ["bcd", "5"]], ["x", "n"], right=[1]) == "x     n\na    10\nbcd   5"


def test_doctor_goes_on_after_a_part_that_is_broken(monkeypatch):
    import depin_nb.cli.doctor as doctor

    def broken():
        raise OSError("no loopback")

    fine = Check("torch", True, "fine")
    monkeypatch.setattr(doctor, "ports", broken)
    monkeypatch.setattr(doctor, "torch", lambda: fine)  # tried for real by hand: each is a process of its own
    monkeypatch.setattr(doctor, "distributed", lambda: fine)
    found = {check.name: check for check in checks()}
    assert found["broken"].ok is False
    assert "no loopback" in found["broken"].text
    assert found["hub"].ok is None
    assert "depin up" in found["hub"].line()
