"""What goes wrong is said with what to do next, fails the cell, and leaves the user's objects as they were. In a real IPython shell."""

import re

import pytest
import torch
from inprocess import generators, local
from running import Trained, leases_of, merged_by_pass

from depin_nb import wiring
from depin_nb.core.errors import DepinError, NoHub, NoWorkers, RefusedLoop, ShipError, UsageError

SETUP = """
import random
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
X = torch.randn(160, 8)
Y = (X.sum(1) > 0).long()
loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
opt = torch.optim.Adam(model.parameters(), lr=0.01)
lines = []
class Diverged(Exception):
    pass
"""

CELL = """
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    lines.append(i)
    print(i, loss.item())
"""


@pytest.fixture
def notebook(shell, session, capsys):
    """The shell with SETUP run anew, two workers there, and nothing on its output yet."""
    assert shell.run_cell(SETUP).success
    capsys.readouterr()
    return shell


def kept(shell):
    """All of the user's objects that a run may change, as plain values."""
    space = shell.user_ns
    weights = {name: value.clone() for name, value in space["model"].state_dict().items()}
    return weights, dict(space["opt"].state), list(space["lines"]), space["model"].training, generators(), set(space)


def same(before, after):
    weights, *rest = before
    weights_after, *rest_after = after
    assert all(torch.equal(value, weights_after[name]) for name, value in weights.items())
    assert [r for r, s in zip(rest, rest_after, strict=True) if r != s] == []


def refused(shell, cell, kind):
    """The error of a cell that fails without having changed anything."""
    before, runs = kept(shell), wiring.runs()
    result = shell.run_cell(cell)
    assert not result.success
    assert type(result.error_in_exec) is kind, result.error_in_exec
    same(before, kept(shell))
    assert wiring.runs() == runs
    assert shell.run_cell("1 + 1").success
    return result.error_in_exec


def test_no_loop(notebook, capsys):
    error = refused(notebook, "%%depin train\nprint(1)", RefusedLoop)
    assert "no training loop" in error.message
    shown = capsys.readouterr().out
    assert "RefusedLoop: there is no training loop" in shown
    assert "-> Put %%depin train on the cell that holds" in shown
    assert "Traceback" not in shown


def test_a_model_that_cannot_be_pickled(notebook, capsys):
    assert notebook.run_cell("class Stuck:\n    def __reduce__(self): raise TypeError('stuck')\nmodel.extra = Stuck()\n").success
    error = refused(notebook, "%%depin train\n" + CELL, ShipError)
    assert "`model.extra`" in error.message
    assert "stuck" in str(error)
    assert error.hint
    assert "ShipError" in capsys.readouterr().out


def test_an_unknown_option_names_the_nearest_and_the_usage(notebook, capsys):
    error = refused(notebook, "%%depin train --stratgy sync\n" + CELL, UsageError)
    assert "--stratgy" in error.message
    shown = capsys.readouterr().out
    assert "Did you mean --strategy?" in shown
    assert "Usage: %%depin train" in shown


def test_a_budget_of_nothing_for_free_workers_is_enough(notebook):
    assert notebook.run_cell("%%depin train --budget 0\n" + CELL).success


def test_no_workers(notebook, session, capsys):
    session.scale(0)
    error = refused(notebook, "%%depin train\n" + CELL, NoWorkers)
    assert "%depin scale" in error.hint
    assert "NoWorkers" in capsys.readouterr().out
    session.scale(2)
    assert notebook.run_cell("%%depin train\n" + CELL).success


WRONG = CELL.replace("    loss.backward()", "    if i == 17:\n        loss = loss + model(x[:, :3]).sum()\n    loss.backward()")
OWN = CELL.replace("    lines.append(i)", "    lines.append(i)\n    if i == 17:\n        raise Diverged('at', i, round(1.5, 1))")


@pytest.mark.parametrize("options", ["--workers 1", "--strategy sync --inner-steps 3", "--strategy local --inner-steps 3"])
@pytest.mark.parametrize(
    ("cell", "line"), [(WRONG, "loss = loss + model(x[:, :3]).sum()"), (OWN, "raise Diverged('at', i, round(1.5, 1))")]
)
def test_an_exception_at_batch_17_is_the_users_own(notebook, capsys, options, cell, line):
    here = notebook.run_cell(cell)
    text = capsys.readouterr().out
    expected, lines = here.error_in_exec, list(notebook.user_ns["lines"])
    assert notebook.run_cell(SETUP).success
    there = notebook.run_cell(f"%%depin train {options}\n" + cell)
    shown = capsys.readouterr().out
    assert not there.success
    assert type(there.error_in_exec).__name__ == type(expected).__name__
    assert str(there.error_in_exec) == str(expected)
    if cell is OWN:
        assert type(there.error_in_exec) is notebook.user_ns["Diverged"]
        assert there.error_in_exec.args == ("at", 17, 1.5)
    # everything before it was replayed
    assert notebook.user_ns["lines"] == lines
    numbers = re.compile(r"^(\d+) \d", re.M)
    assert numbers.findall(shown.split("Traceback")[0]) == numbers.findall(text.split("Traceback")[0])
    # the user's line is what the traceback points at
    assert any(part.strip().startswith("--") and line in part for part in shown.splitlines()), shown
    assert wiring.runs()[0]["state"] == "failed"


def test_one_worker_leaves_the_weights_from_before_the_exception(session):
    setup = SETUP.replace("torch.manual_seed(0)\n", "")
    ours, text, _, error = local(setup, WRONG)
    theirs = Trained(session, setup, WRONG, workers=1)
    assert type(theirs.error) is type(error)
    assert theirs.text == text
    assert all(torch.equal(a, b) for a, b in zip(ours["model"].parameters(), theirs.namespace["model"].parameters(), strict=True))
    assert merged_by_pass(theirs.run_id) == [list(range(18))]
    assert leases_of(theirs.run_id)


def test_a_lambda_and_an_open_file_stay_here(notebook, tmp_path):
    cell = "shrink = lambda v: v / 2\n" + CELL.replace("    print(i, loss.item())", "    log.write(f'{i} {shrink(loss.item()):.3f}\\n')")
    assert notebook.run_cell(f"log = open({str(tmp_path / 'log')!r}, 'w')").success
    assert notebook.run_cell("%%depin train\n" + cell).success
    assert notebook.run_cell("log.close()").success
    assert [row.split()[0] for row in (tmp_path / "log").read_text().splitlines()] == [str(i) for i in range(20)]


def test_every_error_has_a_hint(notebook):
    for cell in (
        "while True:\n    F.mse_loss(model(X), X).backward()\n    opt.step()",
        "import itertools\nfor i in itertools.count():\n    model(X).sum().backward()\n    opt.step()",
    ):
        result = notebook.run_cell("%%depin train\n" + cell)
        assert isinstance(result.error_in_exec, DepinError)
        assert result.error_in_exec.hint


DRY = "%%depin train --dry-run\nepochs = 3\nnotes = []\nfor epoch in range(epochs):\n    " + CELL.strip().replace("\n", "\n    ")


def test_a_dry_run_shows_the_plan_and_changes_nothing(notebook, session, capsys):
    assert notebook.run_cell(
        "g = torch.Generator().manual_seed(3)\nloader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=g)"
    ).success
    before, runs, drawn = kept(notebook), wiring.runs(), notebook.user_ns["g"].get_state()
    result = notebook.run_cell(DRY)
    assert result.success, result.error_in_exec
    shown = capsys.readouterr().out
    assert "for i, (x, y) in enumerate(loader) -> 20 iterations on 2 workers" in shown
    assert "this machine" in shown
    assert "(simulated)" in shown
    same(before, kept(notebook))
    assert torch.equal(notebook.user_ns["g"].get_state(), drawn)
    assert wiring.runs() == runs
    assert session.statuses() == [s for s in session.statuses() if s.ended]


def test_the_magics_on_a_real_hub(notebook, capsys):
    assert notebook.run_cell("%%depin train --strategy sync --name 'my run'\n" + CELL).success
    capsys.readouterr()
    for line in ("%depin", "%depin status", "%depin runs", "%depin ledger"):
        assert notebook.run_cell(line).success
    shown = capsys.readouterr().out
    for word in ("%depin up", "local-1", "my run", wiring.runs()[0]["run_id"]):
        assert word in shown


def test_no_hub(notebook, capsys):
    """Last: it stops the hub that the others share."""
    assert notebook.run_cell("%depin down").success
    before = kept(notebook)
    result = notebook.run_cell("%%depin train\n" + CELL)
    assert isinstance(result.error_in_exec, NoHub)
    assert "%depin up" in capsys.readouterr().out
    same(before, kept(notebook))
