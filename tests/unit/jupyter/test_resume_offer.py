"""`--resume` on the magic's line, and what `%load_ext` says of a run that was cut short."""

import json
import os
import subprocess
import sys
import time

import pytest

from depin_nb.core.errors import UsageError
from depin_nb.hub.records import resumable
from depin_nb.hub.records.journal import Journal, MergeRow
from depin_nb.jupyter.commands import command
from depin_nb.jupyter.complete import candidates
from depin_nb.jupyter.parser import parse
from depin_nb.jupyter.tables import runs

LOAD = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
for magic in ("load_ext", "reload_ext"):
    shell.run_line_magic(magic, "depin_nb")
print(json.dumps([name for name in ("torch", "distributed", "solders", "numpy") if name in sys.modules]))
"""


def cut_short(home, at):
    """A journal with a run that a killed hub left in the second pass of its loop."""
    journal = Journal(home / "journal.sqlite")
    with journal.transaction() as connection:
        journal.add_run("run-7f3c", name="n", where="w", source="s", strategy="sync: one", backend="local", budget=None, at=at)
        resumable.add_run(connection, "run-7f3c", source="s", asked={}, continues=None, kept=True)
        for entry, count in ((1, 6000), (2, 5120)):
            journal.add_entry("run-7f3c", entry, {"total": 6000}, entry, "", at)
            resumable.add_site(connection, "run-7f3c", entry, number=entry, header="h", place="w", generators=b"")
            journal.add_merge("run-7f3c", MergeRow(10 + entry, entry, entry, count, count, (), "", at))
            resumable.add_replay(connection, "run-7f3c", 10 + entry, entry, [(0, count, "")], "f", 5)
    journal.close()


def loaded(home):
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=os.environ | {"DEPIN_HOME": str(home), "IPYTHONDIR": str(home / "ipython")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *said, heavy = done.stdout.splitlines()
    assert json.loads(heavy) == []
    return said


OFFER = "run-7f3c was cut short at iteration 5,120 of loop pass 2: `%%depin train --resume run-7f3c` on top of the same cell continues it."


def test_it_is_offered_once_and_without_anything_heavy(tmp_path):
    cut_short(tmp_path, time.time())
    assert loaded(tmp_path) == [OFFER]


def test_nothing_is_said_of_what_is_long_ago_or_unreadable(tmp_path):
    assert loaded(tmp_path) == []
    assert not (tmp_path / "journal.sqlite").exists()
    cut_short(tmp_path, time.time() - 30 * 86400)
    assert loaded(tmp_path) == []
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 100)
    assert loaded(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "resume"),
    [("train", None), ("train --resume", ""), ("train --resume run-7f3c", "run-7f3c"), ("train --resume --strategy sync", "")],
)
def test_the_run_may_be_left_out(line, resume):
    assert parse(line, cell=True).resume == resume


def test_usage_and_completion(tmp_path, monkeypatch):
    usage = command("train").usage
    assert "[--resume [RUN]]" in usage
    with pytest.raises(UsageError):
        parse("train --resume run-a run-b", cell=True)
    monkeypatch.setenv("DEPIN_HOME", str(tmp_path))
    cut_short(tmp_path, time.time())
    from depin_nb import wiring

    assert [row["resumable"] for row in wiring.runs()] == [False], "its hub may live"
    journal = Journal(tmp_path / "journal.sqlite")
    with journal.transaction():
        journal.end_run("run-7f3c", state="interrupted", message="its hub ended", at=time.time())
    journal.close()
    assert candidates(["train", "--resume"], cell=True)[0] == "run-7f3c"
    assert "--strategy" in candidates(["train", "--resume"], cell=True)
    assert "interrupted, can be resumed" in runs(wiring.runs()).text
