"""`--single` through a real hub: any cell, whole, on one worker; what it says comes live, names come back as the same objects."""

import io
import os
import signal
import sys
import threading

import pytest
import torch
from gates import Gated
from inprocess import local
from running import PATIENCE_S, eventually, leases_of, row_of
from test_detached import notebook

from depin_nb import wiring
from depin_nb.core.codec import encode
from depin_nb.core.errors import HubError, RefusedLoop
from depin_nb.hub.records.journal import Journal
from depin_nb.session import TrainOptions

SETUP = """
import collections
class Box:
    def __init__(self): self.items, self.model = [], None
box = Box()
counts = collections.Counter()
scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
same_lines = lines
def step(x, y):
    global steps
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    steps += 1
    return loss.item()
steps = 0
untouched = [1, 2]
"""

CELL = """
import warnings, logging, sys
class Point:
    def __init__(self, x): self.x = x
def double(x): return 2 * x
it = iter(loader)
total, k = 0.0, 0
while True:
    try:
        x, y = next(it)
    except StopIteration:
        if k == 1:
            break
        k, it = k + 1, iter(loader)
        scheduler.step()
        continue
    total += step(x, y)
    if steps % 10 == 0:
        print(f"{steps} {total:.9f}")
    lines.append((k, total))
    counts["odd" if steps % 2 else "even"] += 1
    match counts["odd"]:
        case 3: box.items.append("third")
box.model = model
found = Point(double(21))
frozen = {(1, 2): [found, found], "t": torch.rand(2)}
head = nn.Linear(2, 2)
del it
total
"""


@pytest.fixture
def gate(tmp_path):
    gated = Gated(tmp_path)
    yield gated
    gated.open()


def single(session, names, cell=CELL, **options):
    limit_s = options.pop("limit_s", None)
    return session.single_cell(cell, names, shell=None, options=TrainOptions(**options), on_status=lambda s: None, limit_s=limit_s)


def test_any_cell_leaves_what_it_would_have_left_here(session, gate, capsys):
    setup = gate.setup + SETUP
    ours, text, generators, error = local(setup, CELL)
    assert error is None
    theirs = notebook(setup)
    objects = {n: theirs[n] for n in ("model", "opt", "scheduler", "lines", "box", "counts", "untouched", "Box")}
    weight = theirs["model"][1].weight
    run = single(session, theirs)
    out = capsys.readouterr()
    assert out.out == text + f"{ours['total']!r}\n"
    assert out.err == ""
    assert all(theirs[n] is obj for n, obj in objects.items())
    assert theirs["model"][1].weight is weight
    assert theirs["same_lines"] is theirs["lines"]
    assert theirs["box"].model is theirs["model"]
    assert all(torch.equal(a, b) for a, b in zip(ours["model"].parameters(), theirs["model"].parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours["model"].parameters(), theirs["model"].parameters(), strict=True))
    assert encode(ours["opt"].state_dict()) == encode(theirs["opt"].state_dict())
    assert ours["scheduler"].state_dict() == theirs["scheduler"].state_dict()
    for name in ("lines", "counts", "steps", "total", "k", "untouched"):
        assert ours[name] == theirs[name], name
    assert (theirs["box"].items, type(theirs["found"]), theirs["found"].x) == (ours["box"].items, theirs["Point"], 42)
    assert theirs["frozen"][1, 2][0] is theirs["found"]
    assert torch.equal(ours["frozen"]["t"], theirs["frozen"]["t"])
    assert torch.equal(ours["head"].weight, theirs["head"].weight)
    assert theirs["head"](torch.ones(1, 2)).shape == (1, 2)
    assert (theirs["double"](4), theirs["logging"]) == (8, __import__("logging"))
    assert "it" not in theirs
    assert set(ours) == set(theirs)
    assert torch.get_rng_state().tolist() == generators[0]
    assert (run.state, row_of(run.run_id).settled) == ("finished", True)


def test_output_comes_before_the_end(session, gate):
    names = notebook(gate.setup)
    gate.close()
    seen = threading.Event()

    class Live(io.StringIO):
        def write(self, said):
            if "before the gate" in said:
                seen.set()
            return super().write(said)

    def let_go():
        if seen.wait(PATIENCE_S):
            eventually((gate.folder / "held").exists, "the cell stands in the gate")
            gate.open()

    opener = threading.Thread(target=let_go)
    opener.start()
    out, err = Live(), Live()
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        cell = "import sys\nprint('before the gate')\nprint('err', file=sys.stderr)\nfor x, y in loader: model(x)\nprint('after')"
        single(session, names, cell)
    finally:
        sys.stdout, sys.stderr = kept
        gate.open()
        opener.join()
    assert seen.is_set()
    assert (gate.folder / "held").exists()  # it stood in the gate until somebody here had read the first line
    assert out.getvalue() == "before the gate\nafter\n"
    assert err.getvalue() == "err\n"


def test_warnings_and_log_records(session, gate, caplog):
    names = notebook(gate.setup)
    cell = "import warnings, logging\nwarnings.warn('look')\nlogging.getLogger('mine').warning('logged %d', 3)"
    with pytest.warns(UserWarning, match="look"):
        single(session, names, cell)
    assert "logged 3" in caplog.text


def test_what_cannot_come_back_is_named(session, gate, capsys):
    names = notebook(gate.setup)
    single(session, names, "gen = (i for i in range(3))\nlock = __import__('threading').Lock()\nfine = 1\ncalls = [lambda: 1]")
    said = capsys.readouterr().err
    assert "gen (generator)" in said
    assert "lock" in said
    assert "calls (function)" in said
    assert names["fine"] == 1
    assert "gen" not in names


def test_an_exception_is_the_users_own(session, gate, capsys):
    names = notebook(gate.setup + "class Diverged(Exception): pass\n")
    with pytest.raises(names["Diverged"], match="at two") as caught:
        single(session, names, "lines.append(1)\nprint('one')\ndef fail():\n    raise Diverged('at two')\nfail()\nlines.append(2)")
    assert "raise Diverged('at two')" in "".join(caught.value.__notes__)
    assert names["lines"] == [1]
    assert capsys.readouterr().out == "one\n"
    assert wiring.runs()[0]["state"] == "failed"


def test_stop(session, gate):
    names = notebook(gate.setup)
    before = names["model"][1].weight.detach().clone()
    forever = "import time\nprint('on it')\nlines.append(1)\nmodel[1].weight.data.zero_()\nwhile True:\n    time.sleep(0.01)"

    def stop():
        status = eventually(lambda: [s for s in session.statuses() if s.state == "running" and s.name == "to stop"], "it runs")[0]
        eventually(lambda: [d for d in session.workers() if d.state == "working"], "a worker works")
        session.control(status.run_id, "stop")

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        single(session, names, forever, name="to stop")
    thread.join()
    assert names["lines"] == []
    assert torch.equal(names["model"][1].weight, before)
    assert row_of(wiring.runs()[0]["run_id"]).state == "stopped"
    # the worker is free again: its loop was ended in the middle
    eventually(lambda: [d.state for d in session.workers()] == ["idle", "idle"], "no worker is busy")
    single(session, names, "lines.append(2)", workers=1)
    assert names["lines"] == [2]


def test_a_lost_worker_starts_it_again(session, gate, capsys):
    setup = gate.setup
    cell = "for x, y in loader:\n    lines.append(model(x).sum().item())\nprint(len(lines))"
    ours, *_ = local(setup, cell)
    names = notebook(setup)
    gate.when_held(lambda pid: os.kill(pid, signal.SIGKILL))
    single(session, names, cell)
    gate.done()
    said = capsys.readouterr()
    assert said.out == f"{gate.batches}\n"
    assert "starts again from its top" in said.err
    assert names["lines"] == ours["lines"]
    wiring.connect("local", workers=2)


def test_refused_before_anything_begins(session, gate):
    names = notebook(gate.setup)
    known = len(wiring.runs())
    with pytest.raises(RefusedLoop, match="line 2"):
        single(session, names, "x = 1\nget_ipython().system('ls')")
    with pytest.raises(SyntaxError):
        single(session, names, "x = (")
    assert len(wiring.runs()) == known


def test_longer_than_allowed(session, gate):
    names = notebook(gate.setup)
    gate.close()
    with pytest.raises(HubError, match="did not end within"):
        single(session, names, "import time\nwhile True:\n    time.sleep(0.01)", limit_s=0.1)
    assert names["lines"] == []


def test_time_is_reserved_and_charged(home, gate):
    session = wiring.connect("depin", workers=1)
    session.scale(0, "local")
    names = notebook(gate.setup)
    try:
        run = single(session, names, "total = sum(range(1000))", budget=None, limit_s=60.0)
        assert names["total"] == 499500
        book = Journal(home / "journal.sqlite", writing=False)
        try:
            ((flops, cost),) = book._rows("SELECT flops, cost_units FROM leases WHERE run_id=?", run.run_id)
        finally:
            book.close()
        assert flops > 0
        assert cost > 0
        assert flops <= 60 * 0.1e12
        assert wiring.verify(run.run_id).ok
        assert [state for _, state, _ in leases_of(run.run_id)] == ["paid"]
    finally:
        session.scale(0, "depin")
