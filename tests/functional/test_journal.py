"""Item 9 and two notebooks on one hub: what a run leaves behind, read with and without a hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gates import CELL, Gated
from running import PATIENCE_S, Trained, eventually, merged_by_pass, row_of

import depin_nb
from depin_nb import wiring
from depin_nb.core.errors import NoSuchRun

PLAIN = """
for epoch in range(2):
    for x, y in loader:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        lines.append(loss.item())
"""

CLIENT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
torch.set_num_threads(1)
from depin_nb import wiring
from gates import CELL, Gated
from running import Trained
gate = Gated(sys.argv[2])
theirs = Trained(wiring.current(), gate.setup, CELL, strategy="local", inner_steps=3, name="other").checked()
print(json.dumps([theirs.run_id, theirs.run.state, len(theirs.namespace["lines"])]))
"""


@pytest.fixture
def gate(tmp_path):
    gated = Gated(tmp_path)
    yield gated
    gated.open()


def test_attach_gives_metrics_and_weights(session, gate):
    theirs = Trained(session, gate.setup, PLAIN, workers=1, name="for later").checked()
    run = depin_nb.attach(theirs.run_id)
    assert run.state == "finished"
    metrics = run.metrics()
    assert metrics["iteration"] == list(range(2 * gate.batches))
    assert metrics["loss"] == pytest.approx(theirs.namespace["lines"], rel=1e-6)
    weights = run.state_dict()
    fresh = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    fresh.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), theirs.namespace["model"].parameters(), strict=True))
    with pytest.raises(KeyError, match="model"):
        run.state_dict("nobody")
    assert theirs.run_id in run.summary()
    newest = wiring.runs()[0]
    assert (newest["run_id"], newest["name"], newest["state"], newest["settled"]) == (theirs.run_id, "for later", "finished", True)


def test_several_models_are_asked_for_by_name(session, gate):
    cell = PLAIN.replace("model(x)", "model(x) + other(x)").replace("opt.zero_grad()", "opt.zero_grad(); second.zero_grad()")
    cell = cell.replace("opt.step()", "opt.step(); second.step()")
    setup = gate.setup + "\nother = nn.Linear(8, 2)\nsecond = torch.optim.SGD(other.parameters(), lr=0.1)\n"
    theirs = Trained(session, setup, cell).checked()
    run = depin_nb.attach(theirs.run_id)
    with pytest.raises(KeyError, match="model, other"):
        run.state_dict()
    fresh = torch.nn.Linear(8, 2)
    fresh.load_state_dict(run.state_dict("other"))
    assert torch.equal(fresh.weight, theirs.namespace["other"].weight)


def test_a_run_nobody_knows(home):
    with pytest.raises(NoSuchRun, match="run-none"):
        depin_nb.attach("run-none")


def test_two_notebooks_on_one_hub_both_finish(session, gate, tmp_path_factory):
    """The other one's worker stands in the gate while this one's run begins and ends: neither waits for the other's end."""
    here = Path(__file__).parent
    folders = json.dumps([str(here), str(here.parent / "unit" / "loop")])
    gate.close()
    other = subprocess.Popen([sys.executable, "-c", CLIENT, folders, str(gate.folder)], stdout=subprocess.PIPE, text=True)
    try:
        gate.held_by()
        ungated = Gated(tmp_path_factory.mktemp("ungated"))
        mine = Trained(session, ungated.setup, PLAIN, strategy="local", inner_steps=3, name="mine").checked()
        assert mine.run.state == "finished"
        assert other.poll() is None
        gate.open()
        said, _ = other.communicate(timeout=PATIENCE_S)
    finally:
        gate.open()
        other.kill()
        other.wait()
    run_id, state, lines = json.loads(said.splitlines()[-1])
    assert (state, lines) == ("finished", 2 * gate.batches)
    for each in (run_id, mine.run_id):
        assert merged_by_pass(each) == [list(range(gate.batches))] * 2
        assert row_of(each).settled


def test_two_notebooks_at_once_share_the_workers(session, gate):
    """Both at full speed."""
    here = Path(__file__).parent
    folders = json.dumps([str(here), str(here.parent / "unit" / "loop")])
    gate.open()
    other = subprocess.Popen([sys.executable, "-c", CLIENT, folders, str(gate.folder)], stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: other.poll() is not None or any(s.name == "other" and not s.ended for s in session.statuses()), "the other runs")
        mine = Trained(session, gate.setup, CELL, strategy="sync", inner_steps=2).checked()
        said, _ = other.communicate(timeout=PATIENCE_S)
    finally:
        other.kill()
        other.wait()
    run_id, state, _ = json.loads(said.splitlines()[-1])
    assert (state, mine.run.state) == ("finished", "finished")
    for each in (run_id, mine.run_id):
        assert merged_by_pass(each) == [list(range(gate.batches))] * 2


def test_the_journal_outlives_the_hub(session, gate):
    """Last: it stops the hub that the others share."""
    theirs = Trained(session, gate.setup, PLAIN).checked()
    wiring.down()
    run = depin_nb.attach(theirs.run_id)
    assert run.state == "finished"
    assert all(torch.equal(run.state_dict()[name], value) for name, value in theirs.namespace["model"].state_dict().items())
    assert theirs.run_id in [row["run_id"] for row in wiring.runs()]
    assert wiring.verify(theirs.run_id).ok
