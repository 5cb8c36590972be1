"""`--resume`: a notebook's process is killed in its second epoch; another one goes on, and nothing is computed or paid twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gates import SETUP
from inprocess import local, seed
from running import PATIENCE_S, Trained, eventually, function, journal, merged_by_pass, row_of
from test_split import compare

import depin_nb
from depin_nb import wiring
from depin_nb.core.errors import NoSuchRun, ResumeError

HERE = Path(__file__).parent
FOLDERS = json.dumps([str(HERE), str(HERE.parent / "unit" / "loop")])

#: closes the gate after the first epoch, in the process that will be killed
ARMED = """
class Shuffled(torch.utils.data.Sampler):
    '''Another order each time, in which the sample that the gate knows begins the same batch.'''
    def __len__(self):
        return len(X)
    def __iter__(self):
        order = torch.randperm(len(X)).tolist()
        order.remove(AT)
        return iter([*order[:AT], AT, *order[AT:]])

AT = int(X[:, 0].argmax())
loader = DataLoader(TensorDataset(X, Y), batch_size=4, sampler=Shuffled())
history = []

def between(epoch):
    '''Validation, as notebooks do it: on the weights of the epoch's end.'''
    with torch.no_grad():
        history.append(model(X).argmax(1).eq(Y).float().mean().item())
    if epoch == 0 and os.path.exists(os.path.join(FOLDER, "armed")):
        os.replace(os.path.join(FOLDER, "armed"), os.path.join(FOLDER, "hold"))
"""

CELL = """
for epoch in range(3):
    total = 0.0
    for i, (x, y) in enumerate(loader):
        opt.zero_grad()
        loss = F.cross_entropy(model(x) + 0.1 * torch.randn(len(y), 2), y)
        loss.backward()
        opt.step()
        total += loss.item()
        lines.append((epoch, i))
        if i % 4 == 0:
            print(f"{epoch} {i} {total:.9f}")
    between(epoch)
    scheduler.step()
    print(epoch, f"{total:.9f} {history[-1]:.9f} {torch.rand(1).item():.9f} {random.random():.9f}")
"""

NOTEBOOK = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
torch.set_num_threads(1)
from depin_nb import wiring
from running import Trained
setup, cell, options = json.loads(sys.argv[2])
Trained(wiring.current(), setup, cell, **options).checked()
print("it was not killed")
"""

IPYTHON = """
import json, sys
import torch
torch.set_num_threads(1)
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.colors = "NoColor"
shell.run_line_magic("load_ext", "depin_nb")
shell.run_line_magic("reload_ext", "depin_nb")
setup, cell, line = json.loads(sys.argv[1])
import random, numpy
for seed in (torch.manual_seed, random.seed, numpy.random.seed):
    seed(0)
shell.run_cell(setup).raise_error()
shell.run_cell(line + chr(10) + cell).raise_error()
shell.run_line_magic("depin", "runs")
ns = shell.user_ns
print(json.dumps([ns["lines"], ns["history"], [p.tolist() for p in ns["model"].parameters()]]))
"""

FIT = "def fit():\n" + "".join(f"    {line}\n" for line in CELL.strip().splitlines()) + "    return total\n"

SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
torch.set_num_threads(1)
from depin_nb import wiring
from running import function
from test_resume import run_setup
setup, source, options = json.loads(sys.argv[2])
wiring.current().train(function(source, run_setup(setup)), **options)
print("it was not killed")
"""


def run_setup(setup):
    """The names that a notebook has before it trains."""
    namespace = {"__name__": "__main__"}
    seed()
    exec(compile(setup, "<setup>", "exec"), namespace)
    return namespace


class Notebook:
    """A process that runs a cell and is killed once a worker stands in the gate in the second epoch."""

    def __init__(self, folder, *, batches=16):
        self.folder, self.batches = Path(folder), batches
        self.setup = SETUP.format(folder=str(folder), patience=PATIENCE_S, at=6, batches=batches, width=16) + ARMED
        self.setup += "\nscheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)\n"

    def killed(self, merged, script=NOTEBOOK, source=CELL, **options):
        """Runs CELL until `merged(run)` holds, then kills the process. Returns the run's id."""
        (self.folder / "armed").touch()
        process = subprocess.Popen([sys.executable, "-c", script, FOLDERS, json.dumps([self.setup, source, options])])
        try:
            eventually(lambda: (self.folder / "held").exists() or process.poll() is not None, "a worker stands in the gate")
            assert process.poll() is None
            run_id = wiring.runs()[0]["run_id"]
            eventually(lambda: merged(run_id), "some of the second epoch is merged")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.release()
        return run_id

    def release(self):
        for name in ("hold", "held", "armed"):
            (self.folder / name).unlink(missing_ok=True)


@pytest.fixture
def notebook(tmp_path):
    made = Notebook(tmp_path)
    yield made
    made.release()


def merged_in(entry, least):
    def merged(run_id):
        with journal() as book:
            return len(book.merged_units(run_id, entry)) >= least

    return merged


def each_once(runs, batches, passes=3):
    """Every index of every pass in one merged lease, over all of the runs."""
    counts = {}
    with journal() as book:
        for run_id in runs:
            for entry, number in book._rows("SELECT entry, number FROM sites WHERE run_id=?", run_id):
                counts.setdefault(number, []).extend(i for i, _ in book.merged_units(run_id, entry))
    assert {number: sorted(found) for number, found in counts.items()} == {n: list(range(batches)) for n in range(1, passes + 1)}


def solved(run_id, **more):
    row = row_of(run_id)
    assert row.settled
    assert wiring.verify(run_id).ok
    assert wiring.check(run_id).problems == ()
    for name, value in more.items():
        assert getattr(row, name) == value, name


def test_one_worker_ends_as_if_nothing_had_happened(session, notebook):
    ours, text, generators, error = local(notebook.setup, CELL)
    assert error is None
    old = notebook.killed(merged_in(2, 2), workers=1)
    theirs = Trained(session, notebook.setup, CELL, resume=old).checked()
    assert theirs.text == text
    compare(ours, theirs.namespace)
    assert theirs.generators == generators
    new = theirs.run_id
    assert new != old
    each_once([old, new], notebook.batches)
    solved(old, state="interrupted", resumable=False)
    solved(new, state="finished", continues=old, resumable=False)
    assert theirs.run.status.iterations_done == 3 * notebook.batches
    assert any(old in notice for notice in theirs.run.status.notices)
    run = depin_nb.attach(new)
    assert run.metrics()["iteration"] == list(range(3 * notebook.batches))
    assert all(torch.equal(run.state_dict()[n], v) for n, v in theirs.namespace["model"].state_dict().items())
    kept = run.checkpoint().state_dict("model")
    assert all(torch.equal(kept[n], v) for n, v in theirs.namespace["model"].state_dict().items())
    assert run.checkpoint(best=True) in run.checkpoints()
    # a finished one is over
    for run_id, words in ((old, "has been continued"), (new, "has finished")):
        with pytest.raises(ResumeError, match=words):
            session.train_cell(CELL, {}, shell=None, options=wiring_options(resume=run_id), on_status=print)


def wiring_options(**options):
    from depin_nb.session import TrainOptions

    return TrainOptions(**options)


def test_three_workers_merge_each_index_once(home, notebook):
    session = wiring.up("local", 3)
    try:
        old = notebook.killed(merged_in(2, 1), strategy="local", inner_steps=2)
        theirs = Trained(session, notebook.setup, CELL, resume="").checked()
        assert theirs.run.status.strategy.startswith("local")  # as the killed one was asked to
        each_once([old, theirs.run_id], notebook.batches)
        assert theirs.namespace["lines"] == [(e, i) for e in range(3) for i in range(notebook.batches)]
        shape = [line.split()[:2] for line in theirs.text.splitlines() if line.split()[1].isdigit()]
        assert shape == [[str(e), str(i)] for e in range(3) for i in range(0, notebook.batches, 4)]
        assert len(theirs.namespace["history"]) == 3
        solved(old, state="interrupted")
        solved(theirs.run_id, state="finished", continues=old)
    finally:
        wiring.up("local", 2)


def test_load_ext_offers_it_and_the_magic_goes_on(session, notebook):
    ours, text, _, _ = local(notebook.setup, CELL)
    old = notebook.killed(merged_in(2, 2), workers=1)
    eventually(lambda: row_of(old).resumable, "the hub has seen that the kernel is gone")
    done = subprocess.run(
        [sys.executable, "-c", IPYTHON, json.dumps([notebook.setup, CELL, "%%depin train --resume"])],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    offers = [line for line in said if "was cut short" in line]
    assert offers == [said[0]], "once"
    assert said[0].startswith(f"{old} was cut short at iteration ")
    assert f"of loop pass 2: `%%depin train --resume {old}` on top of the same cell continues it." in said[0]
    assert text.strip() in done.stdout
    lines, history, parameters = json.loads(said[-1])
    assert lines == [list(each) for each in ours["lines"]]
    assert history == ours["history"]
    assert parameters == [p.tolist() for p in ours["model"].parameters()]


def test_a_function_goes_on(session, notebook):
    namespace = run_setup(notebook.setup)
    ours = function(FIT, namespace)()
    old = notebook.killed(merged_in(2, 2), SCRIPT, FIT, workers=1)
    theirs = run_setup(notebook.setup)
    run = session.train(function(FIT, theirs), resume=old)
    assert run.result == ours
    assert theirs["history"] == namespace["history"]
    compare({k: namespace[k] for k in ("model", "opt", "lines")}, {k: theirs[k] for k in ("model", "opt", "lines")})
    each_once([old, run.run_id], notebook.batches)


def test_what_cannot_be_resumed(session, notebook):
    old = notebook.killed(merged_in(2, 2), workers=1)
    with pytest.raises(NoSuchRun):
        Trained(session, notebook.setup, CELL, resume="run-none").checked()
    other = CELL.replace("0.1 * torch.randn", "0.2 * torch.randn")
    with pytest.raises(ResumeError, match=r"line 6 is `loss = .*0\.2 .* and was `loss = .*0\.1 ") as caught:
        Trained(session, notebook.setup, other, resume=old).checked()
    assert caught.value.hint
    wider = notebook.setup.replace("16", "24")
    with pytest.raises(ResumeError, match=f"isn't what {old} ran: "):
        Trained(session, wider, CELL, resume=old).checked()
    assert old in [row["run_id"] for row in wiring.runs() if row["resumable"]], "it can still be resumed"
    assert depin_nb.attach(old).metrics()["iteration"][: notebook.batches] == list(range(notebook.batches))


def test_a_notebook_killed_with_its_hub_is_resumed_too_and_nothing_is_sent_again(session, notebook):
    """Last: it kills the hub that the others share. (One whose notebook lives goes on by itself: test_hub_killed.py.)"""
    ours, text, generators, _ = local(notebook.setup, CELL)
    (notebook.folder / "armed").touch()
    arguments = [sys.executable, "-c", NOTEBOOK, FOLDERS, json.dumps([notebook.setup, CELL, {"workers": 1}])]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        eventually((notebook.folder / "held").exists, "a worker stands in the gate")
        old = wiring.runs()[0]["run_id"]
        eventually(lambda: merged_in(2, 2)(old), "some of the second epoch is merged")
        os.kill(process.pid, signal.SIGKILL)
        os.kill(session.info.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        notebook.release()
    again = wiring.up("local", 2)
    assert again.info.pid != session.info.pid
    assert row_of(old).resumable
    asked, missing, ask = set(), set(), again.hub.call

    def call(op, **request):
        answer = ask(op, **request)
        if op == "blob_missing":
            asked.update(request["digests"])
            missing.update(answer["missing"])
        return answer

    again.hub.call = call
    try:
        theirs = Trained(again, notebook.setup, CELL, resume=old).checked()
    finally:
        del again.hub.call
    assert theirs.text == text
    compare(ours, theirs.namespace)
    assert theirs.generators == generators
    each_once([old, theirs.run_id], notebook.batches)
    # a program for each of the two entries (they hold the loop as it stands); the data is in the hub's store since the first run
    assert len(missing) <= 2
    assert len(asked - missing) >= 2
    assert merged_by_pass(old)[0] == list(range(notebook.batches))
