"""`%depin debug` by the magic itself, in a real IPython shell, after a run on a hub failed."""

import io
import traceback

import pytest
import torch
from inprocess import generators
from IPython.core.debugger import Pdb

from depin_nb.core.errors import UsageError

SETUP = """
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
X = torch.randn(80, 8)
Y = (X.sum(1) > 0).long()
loader = DataLoader(TensorDataset(X, Y), batch_size=8)
model = nn.Linear(8, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
worst = 3

class Diverged(Exception):
    pass

def check(loss, step):
    margin = worst - step
    if margin < 0:
        raise Diverged(f"at {step}")
"""
CELL = """%%depin train --strategy sync
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    check(loss, i)
    print(i, loss.item())
"""
LOOK = "p ('margin', margin)\np ('step', step)\nup\np ('batch', tuple(x.shape), i)\nq\n"


@pytest.fixture
def scripted(monkeypatch, shell):
    """What a debugger says to the commands of LOOK; the shell opens it as it would its own."""
    said = io.StringIO()

    def opened():
        pdb = Pdb(stdin=io.StringIO(LOOK), stdout=said)
        pdb.use_rawinput = False
        return pdb

    monkeypatch.setattr(type(shell), "debugger_cls", property(lambda self: opened))
    return said


def test_the_debugger_stands_in_the_users_frame_of_the_failing_iteration(shell, session, scripted, capsys):
    assert shell.run_cell(SETUP).success
    failed = shell.run_cell(CELL)
    assert type(failed.error_in_exec) is shell.user_ns["Diverged"]
    files = [frame.filename for frame in traceback.extract_tb(failed.error_in_exec.__traceback__)]
    ours = [file for file in files if "depin_nb" in file]
    assert [file.endswith("magic.py") for file in ours] == [
        True,
        True,
    ]  # IPython hides these two; no others stand around the user's lines
    shown = capsys.readouterr().out
    assert "magic.py" not in shown
    assert "----> 6 check(loss, i)" in shown
    before = shell.user_ns["model"].weight.clone(), generators()
    assert shell.run_cell("%depin debug").success
    answers = scripted.getvalue()
    assert "('margin', -1)" in answers
    assert "('step', 4)" in answers
    assert "('batch', (8, 8), 4)" in answers
    assert "Diverged: at 4" in capsys.readouterr().out
    assert torch.equal(shell.user_ns["model"].weight, before[0])
    assert generators() == before[1]


def test_nothing_to_look_into_after_a_run_that_went_well(shell, session, scripted, capsys):
    assert shell.run_cell(SETUP + "worst = 100\n").success
    assert shell.run_cell(CELL).success
    capsys.readouterr()
    answered = shell.run_cell("%depin debug")
    assert type(answered.error_in_exec) is UsageError
    shown = capsys.readouterr().out
    assert "no run of this kernel has failed in its loop" in shown
    assert "-> " in shown
    assert "Traceback" not in shown
    assert scripted.getvalue() == ""
