"""Detached runs through a real hub: the kernel goes, the run goes on; logs, results and weights come back, whole or not at all."""

import json
import linecache
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import psutil
import pytest
import torch
from gates import Gated
from inprocess import local, seed
from IPython.core.interactiveshell import InteractiveShell
from running import PATIENCE_S, eventually, function, row_of

import depin_nb
from depin_nb import wiring
from depin_nb.cli.command import main as cli
from depin_nb.core.errors import BindError, HubError, NoSuchRun, RefusedLoop, ShipError, UsageError
from depin_nb.hub.detached.folder import DetachedFolder
from depin_nb.jupyter.magic import DepinMagics
from depin_nb.session import TrainOptions

CELL = """
history = {"loss": []}
for epoch in range(2):
    total = 0.0
    for i, (x, y) in enumerate(loader):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        total += loss.item()
        lines.append((epoch, i))
    scheduler.step()
    history["loss"].append(total / len(loader))
    tracker.note(epoch, total)
    print(f"epoch {epoch} {total:.9f}")
best = model
noise = torch.rand(3)
"""
SETUP = """
import warnings
class Tracker:
    def __init__(self, model):
        self.model, self.seen = model, []
    def note(self, epoch, total):
        self.seen.append((epoch, total))
        if epoch == 0:
            warnings.warn("noted")
scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
tracker = Tracker(model)
kept = tracker.seen
rate = 0.5
"""

SENDER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
torch.set_num_threads(1)
from depin_nb import wiring
from test_detached import CELL, SETUP, notebook
from depin_nb.session import TrainOptions
names = notebook(sys.argv[2])
run = wiring.current().detach_cell(CELL, names, shell=None, options=TrainOptions(workers=1, strategy="sync"))
print(run.run_id)
"""


@pytest.fixture
def gate(tmp_path):
    gated = Gated(tmp_path)
    yield gated
    gated.open()


def notebook(setup):
    """A notebook's names after its setup cell."""
    names = {"__name__": "__main__"}
    filename = f"<setup {abs(hash(setup))}>"
    linecache.cache[filename] = (len(setup), None, setup.splitlines(keepends=True), filename)
    seed()
    exec(compile(setup, filename, "exec"), names)
    return names


def detach(session, names, cell=CELL, **options):
    options = {"workers": 1, "strategy": "sync", **options}
    return session.detach_cell(cell, names, shell=None, options=TrainOptions(**options))


def same(ours, theirs):
    """Weights, optimizer, scheduler, plain names, generators' next numbers."""
    assert all(torch.equal(a, b) for a, b in zip(ours["model"].parameters(), theirs["model"].parameters(), strict=True))
    mine, other = (ns["opt"].state_dict() for ns in (ours, theirs))
    assert mine["param_groups"] == other["param_groups"]
    assert all(torch.equal(mine["state"][i]["momentum_buffer"], other["state"][i]["momentum_buffer"]) for i in mine["state"])
    assert ours["scheduler"].state_dict() == theirs["scheduler"].state_dict()
    for name in ("history", "lines", "total", "epoch", "i"):
        assert ours[name] == theirs[name], name
    assert ours["tracker"].seen == theirs["tracker"].seen
    assert torch.equal(ours["noise"], theirs["noise"])


def expected(setup):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, text, _, error = local(setup, CELL)
    assert error is None
    return ours, text


def test_bound_it_is_what_the_cell_would_have_made_here(session, gate):
    setup = gate.setup + SETUP
    ours, text = expected(setup)
    after = torch.get_rng_state()
    theirs = notebook(setup)
    objects = {name: theirs[name] for name in ("model", "opt", "scheduler", "lines", "tracker", "kept", "alias")}
    weight = theirs["model"][1].weight
    run = detach(session, theirs)
    assert "history" not in theirs
    run.wait(PATIENCE_S)
    logged = run.logs()
    assert [line for line in logged.splitlines() if line.startswith("epoch")] == text.splitlines()
    assert logged.count("UserWarning: noted") == 1
    assert run.bind() is run
    same(ours, theirs)
    assert all(theirs[name] is obj for name, obj in objects.items())
    assert theirs["model"][1].weight is weight
    assert theirs["best"] is theirs["model"]
    assert theirs["tracker"].model is theirs["model"]
    assert theirs["kept"] is theirs["tracker"].seen
    assert theirs["opt"].param_groups[0]["params"][0] is weight
    assert torch.equal(torch.get_rng_state(), after)
    assert not [n for n in theirs if n.startswith("__depin")]
    assert (run.state, row_of(run.run_id).state, row_of(run.run_id).settled) == ("finished", "finished", True)
    assert not run.folder.capture.exists()
    run.unbind()
    assert "history" not in theirs
    assert (theirs["lines"], theirs["tracker"].seen) == ([], [])
    assert torch.equal(theirs["model"][1].weight, notebook(setup)["model"][1].weight)
    assert not theirs["opt"].state
    with pytest.raises(UsageError):
        run.unbind()


def test_the_kernel_ends_and_another_one_attaches(session, gate):
    setup = gate.setup + SETUP
    ours, text = expected(setup)
    here = Path(__file__).parent
    folders = json.dumps([str(here), str(here.parent / "unit" / "loop")])
    gate.close()
    sender = subprocess.run(
        [sys.executable, "-c", SENDER, folders, setup], stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE_S
    )
    run = depin_nb.attach(sender.stdout.split()[-1])
    gate.held_by()  # the kernel is gone, and it trains
    assert run.state == "running"
    with pytest.raises(TimeoutError):
        run.wait(0.0)
    assert wiring.runs()[0]["state"] == "running"
    gate.open()
    run.wait(PATIENCE_S)
    assert "".join(run.follow()) == run.logs()
    assert text.splitlines()[-1] in run.logs()
    fresh = {}
    run.bind(fresh)
    same(ours, fresh)
    assert fresh["best"] is fresh["model"]
    assert fresh["opt"].param_groups[0]["params"][0] is fresh["model"][1].weight
    there = notebook(setup)
    model, weight = there["model"], there["model"][1].weight
    run.bind(there)
    same(ours, there)
    assert there["model"] is model
    assert model[1].weight is weight
    assert there["opt"].param_groups[0]["params"][0] is weight


def test_what_the_user_changed_since_is_said(session, gate):
    names = notebook(gate.setup + SETUP)
    run = detach(session, names).wait(PATIENCE_S)
    names["lines"].append("mine")
    names["rate"] = 0.25
    with torch.no_grad():
        names["model"][1].weight.add_(1.0)
    mine = names["model"][1].weight.detach().clone()
    with pytest.raises(BindError, match="lines"):
        run.bind(strict=True)
    assert names["lines"] == ["mine"]
    assert torch.equal(names["model"][1].weight, mine)
    with pytest.warns(UserWarning, match=r"lines.*model.*changed here since") as caught:
        run.bind()
    assert "rate" not in str(caught[0].message)
    assert names["rate"] == 0.25
    assert "mine" not in names["lines"]
    run.unbind()
    assert names["lines"] == ["mine"]
    assert torch.equal(names["model"][1].weight, mine)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:2000] + bytes(8) + data[2008:], lambda data: b""])
def test_broken_results_change_nothing(session, gate, damage):
    names = notebook(gate.setup + SETUP)
    before = names["model"][1].weight.detach().clone()
    run = detach(session, names).wait(PATIENCE_S)
    path = run.folder.results
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BindError, match="nothing was changed"):
        run.bind()
    assert "history" not in names
    assert names["lines"] == []
    assert torch.equal(names["model"][1].weight, before)


def test_an_error_is_the_cells_own(session, gate):
    names = notebook(gate.setup + SETUP + "class Diverged(Exception): pass\n")
    run = detach(session, names, CELL.replace("    scheduler.step()", "    if epoch == 1:\n        raise Diverged('at one')"))
    with pytest.raises(names["Diverged"], match="at one") as caught:
        run.wait(PATIENCE_S)
    (note,) = caught.value.__notes__
    assert "raise Diverged('at one')" in note
    assert "depin_nb/" not in note
    assert "Diverged: at one" in run.logs()
    with pytest.raises(names["Diverged"]):
        run.bind()
    assert names["lines"] == []
    run.bind(partial=True)
    assert len(names["lines"]) == 2 * gate.batches
    assert len(names["history"]["loss"]) == 1
    assert (run.state, row_of(run.run_id).state) == ("failed", "failed")


def test_stop_from_anywhere(session, gate):
    names = notebook(gate.setup + SETUP)
    gate.close()
    run = detach(session, names)
    gate.held_by()
    session.control(run.run_id, "stop")
    gate.open()
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        run.wait(PATIENCE_S)
    assert (run.state, row_of(run.run_id).state) == ("stopped", "stopped")
    run.bind(partial=True)
    assert 0 < len(names["lines"]) <= gate.at
    assert all(torch.equal(run.state_dict()[n], t) for n, t in names["model"].state_dict().items())


WAITING = """
import os, time
for x, y in loader:
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    lines.append(loss.item())
print("waiting")
while not os.path.exists(os.path.join(FOLDER, "never")):
    time.sleep(0.01)
"""


def test_stop_outside_the_loop(session, gate):
    names = notebook(gate.setup)
    run = detach(session, names, WAITING)
    eventually(lambda: "waiting" in run.logs(), "the loop is over")
    session.control(run.run_id, "stop")
    with pytest.raises(KeyboardInterrupt):
        run.wait(PATIENCE_S)
    assert (run.state, row_of(run.run_id).state) == ("stopped", "stopped")
    run.bind(partial=True)
    assert len(names["lines"]) == gate.batches


def process_of(run):
    last = ["depin_nb.session.detached.process", run.run_id]
    (found,) = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-2:] == last]
    return found


def test_a_killed_process_leaves_the_last_merge(session, gate):
    names = notebook(gate.setup)
    run = detach(session, names, WAITING)
    eventually(lambda: "waiting" in run.logs(), "the loop is over")
    os.kill(process_of(run).pid, signal.SIGKILL)
    with pytest.raises(HubError, match="SIGKILL"):
        run.wait(PATIENCE_S)
    assert row_of(run.run_id).state == "failed"
    assert "SIGKILL" in row_of(run.run_id).message
    model, before = names["model"], names["model"][1].weight.detach().clone()
    with pytest.raises(HubError):
        run.bind()
    run.bind(partial=True)
    assert names["model"] is model
    assert not torch.equal(model[1].weight, before)
    assert all(torch.equal(run.state_dict()[n], t) for n, t in model.state_dict().items())
    run.unbind()
    assert torch.equal(model[1].weight, before)


FIT = """
def fit():
    for x, y in loader:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        lines.append(loss.item())
    return {"last": lines[-1], "model": model}
"""


def test_a_function_in_the_background(session, gate):
    ours = notebook(gate.setup)
    expected_last = function(FIT, ours)()["last"]
    names = notebook(gate.setup)
    run = session.train(function(FIT, names), background=True, strategy="sync", workers=1)
    assert [n for n in names if "detached" in n or n.startswith("__depin")] == []
    run.bind()
    assert [n for n in names if "detached" in n or n.startswith("__depin")] == []
    assert run.result["last"] == expected_last == names["lines"][-1]
    assert run.result["model"] is names["model"]
    assert names["lines"] == ours["lines"]
    assert all(torch.equal(a, b) for a, b in zip(ours["model"].parameters(), names["model"].parameters(), strict=True))


def test_the_magics_and_the_commands(session, gate, capsys):
    shell = InteractiveShell(user_ns={})
    depin = DepinMagics(shell).depin
    ours, text = expected(gate.setup + SETUP)
    shell.user_ns.update(notebook(gate.setup + SETUP))
    depin("train --detach --strategy sync --workers 1", CELL)
    run_id = wiring.runs()[0]["run_id"]
    assert f"%depin bind {run_id}" in capsys.readouterr().out
    depin("logs --follow")
    assert text.splitlines()[-1] in capsys.readouterr().out
    depin("attach")
    assert f"{run_id}" in capsys.readouterr().out
    assert cli(["logs", run_id]) == 0
    assert text.splitlines()[-1] in capsys.readouterr().out
    assert cli(["attach"]) == 0
    assert f"{run_id}  finished" in capsys.readouterr().out
    depin("bind")
    same(ours, shell.user_ns)
    depin("train --single", "lines.append('more')\nprint('there')")
    assert "there" in capsys.readouterr().out
    assert shell.user_ns["lines"][-1] == "more"
    with pytest.raises(UsageError, match="--detach and --single"):
        depin("train --detach --single", CELL)
    with pytest.raises(NoSuchRun, match="wasn't detached"):
        depin(f"logs {wiring.runs()[0]['run_id']}")


def test_refused_here_before_anything_begins(session, gate):
    names = notebook(gate.setup)
    known = len(wiring.runs())
    with pytest.raises(RefusedLoop) as caught:
        detach(session, names, "x = 1\nprint(x)")
    assert caught.value.hint
    with pytest.raises(RefusedLoop, match="line 2"):
        detach(session, names, "\nget_ipython().run_line_magic('time', '')\n" + CELL)
    with open(gate.folder / "log.txt", "w") as names["log"], pytest.raises(ShipError, match="`log`") as caught:
        detach(session, names, CELL.replace("print(", "print(log.name, "))
    assert "inside the cell" in caught.value.hint
    assert len(wiring.runs()) == known
    with pytest.raises(NoSuchRun):
        DetachedFolder("../elsewhere")


def test_the_hub_ends_it_in_order_and_says_so(session, gate):
    """Last: it stops the hub that the others share."""
    names = notebook(gate.setup)
    run = detach(session, names, WAITING)
    eventually(lambda: "waiting" in run.logs(), "the loop is over")
    process = process_of(run)
    wiring.down()
    process.wait(PATIENCE_S)
    run = depin_nb.attach(run.run_id)
    assert (run.state, row_of(run.run_id).state) == ("interrupted", "interrupted")
    assert row_of(run.run_id).message == "the hub was shut down"
    run.bind(partial=True)
    assert len(names["lines"]) == gate.batches


def test_a_killed_hub(home, gate):
    session = wiring.connect("local", workers=1)
    names = notebook(gate.setup)
    run = detach(session, names, WAITING)
    eventually(lambda: "waiting" in run.logs(), "the loop is over")
    process = process_of(run)
    os.kill(session.info.pid, signal.SIGKILL)
    eventually(lambda: not wiring.lives(), "the hub is gone")
    session = wiring.connect("local", workers=1)
    assert session.statuses()[-1].state == "waiting"
    assert process.is_running()
    (gate.folder / "never").touch()
    run.wait(PATIENCE_S)
    assert (run.state, row_of(run.run_id).state) == ("finished", "finished")
    run.bind()
    assert len(names["lines"]) == gate.batches


def test_a_hub_that_was_killed_and_ended(home, gate):
    """`down` without a hub: what the killed one has left ends, with what it has."""
    session = wiring.connect("local", workers=1)
    names = notebook(gate.setup)
    run = detach(session, names, WAITING)
    eventually(lambda: "waiting" in run.logs(), "the loop is over")
    process = process_of(run)
    os.kill(session.info.pid, signal.SIGKILL)
    eventually(lambda: not wiring.lives(), "the hub is gone")
    wiring.down()
    process.wait(PATIENCE_S)
    run = depin_nb.attach(run.run_id)
    assert run.state == "interrupted"
    assert wiring.runs()[0]["state"] == "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run.wait(PATIENCE_S)
    run.bind(partial=True)
    assert len(names["lines"]) == gate.batches
