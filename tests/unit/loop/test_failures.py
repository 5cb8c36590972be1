"""Exceptions of the worker half in the notebook: own type, user's lines, chains; and `%depin debug`, which runs them again here."""

import io
import sys
import threading
import traceback

import pytest
import torch
from cells_beside import SETUP
from inprocess import generators, leased, local

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import RemoteError, UsageError
from depin_nb.loop import debug
from depin_nb.loop.halves.failures import described, known, rebuilt
from depin_nb.loop.halves.recorder import MAX_HANDED_BYTES

STEP = """
    opt.zero_grad()
    loss = criterion(net(x), y)
    loss.backward()
    opt.step()
    done.append(i)
"""
NET = """
class Broken(Exception):
    def __init__(self, at, shape):
        super().__init__(f"broken at {at}")
        self.at, self.shape = at, shape
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(6, 2), 0
    def forward(self, x):
        self.calls += 1
        return self.check(x)
    def check(self, x):
        width = x.shape[1]
        if self.calls == 4:
            RAISE
        return self.fc(x)
net, done = Net(), []
opt = torch.optim.SGD(net.parameters(), lr=0.1)
"""
LOOP = "for i, (x, y) in enumerate(loader):" + STEP


def both(statement, code=LOOP):
    setup = SETUP + NET.replace("RAISE", statement)
    return local(setup, code), leased(setup, code)


RAISES = {
    "own class, own constructor": "raise Broken(4, list(x.shape))",
    "torch": "self.fc(x[:, :3])",
    "key": "{}['missing']",
    "unicode": "b'\\xff'.decode()",
    "os": "open('/nowhere/at/all')",
    "from another": "raise ValueError('outer') from KeyError('inner')",
    "a group": "raise ExceptionGroup('both', [ValueError(1), KeyError('k')])",
    "stopped": "raise StopIteration(3)",
    "a library's": "__import__('json').loads('{')",
}


@pytest.mark.parametrize("name", RAISES)
def test_it_is_the_users_own(name):
    ours, theirs = both(RAISES[name])
    here, there = ours[3], theirs[3]
    assert (type(here).__qualname__, str(here)) == (type(there).__qualname__, str(there))
    assert not isinstance(there, RemoteError)
    assert theirs[0]["done"] == ours[0]["done"] == [0, 1, 2]
    assert torch.equal(ours[0]["net"].fc.weight, theirs[0]["net"].fc.weight)
    assert (type(here.__cause__), str(here.__cause__)) == (type(there.__cause__), str(there.__cause__))
    lines = [f.lineno for f in traceback.extract_tb(there.__traceback__) if f.filename == "<cell>"]
    assert lines == [f.lineno for f in traceback.extract_tb(here.__traceback__) if f.filename == "<cell>"]
    assert not [f for f in traceback.extract_tb(there.__traceback__) if "depin_nb/loop" in f.filename and "replay" in f.filename]


def test_attributes_and_the_workers_frames_come_along():
    error = both(RAISES["own class, own constructor"])[1][3]
    assert (error.at, error.shape) == (4, [8, 6])
    (note,) = error.__notes__
    assert "check, line" in note
    assert "raise Broken(4, list(x.shape))" in note.splitlines()[-1]


def test_a_librarys_last_line_is_in_the_note():
    (note,) = both(RAISES["torch"])[1][3].__notes__
    assert "linear.py, forward" in note.splitlines()[-1]


def test_a_datasets_error_comes_before_the_body():
    setup = SETUP + (
        "class Bad(Dataset):\n    def __len__(self):\n        return 12\n    def __getitem__(self, i):\n"
        "        if i == 9:\n            raise LookupError(i)\n        return X[i], Y[i]\nbad = DataLoader(Bad(), batch_size=4)\n"
    )
    code = "for x, y in bad:\n    print('body')\n    opt.zero_grad()\n    criterion(model(x), y).backward()\n    opt.step()\n"
    ours, theirs = local(setup, code), leased(setup, code)
    assert theirs[1] == ours[1] == "body\nbody\n"
    assert type(theirs[3]) is LookupError


@pytest.mark.parametrize("statement", ["sys.exit(3)", "raise SystemExit('now')", "raise KeyboardInterrupt"])
def test_leaving_from_the_body(statement):
    """As on a worker, where leases run in a thread of their own."""
    code = LOOP.replace("done.append(i)", f"done.append(i)\n    if i == 2: {statement}")
    setup = SETUP + NET.replace("RAISE", "pass")
    caught = []

    def run():
        for way in (local, leased):
            try:
                way(setup, code)
            except BaseException as error:
                caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 2
    assert type(caught[0]) is type(caught[1])
    assert str(caught[0]) == str(caught[1])


def test_what_is_not_known_here_is_named():
    error = rebuilt({**described(ValueError("x")), "type": "nosuch.module.Error"}, {})
    assert type(error) is RemoteError
    assert "nosuch.module.Error: x" in str(error)
    assert "nosuch" not in sys.modules


class Picky(Exception):
    def __init__(self, *args):
        raise AssertionError("the user's constructor was run on a worker's word")

    def __str__(self):
        return self.text


def test_no_constructor_of_the_users_is_run():
    data = {"type": "__main__.Picky", "message": "hm", "args": [1], "attributes": {"text": "hm"}, "frames": []}
    error = rebuilt(data, {"Picky": Picky})
    assert type(error) is Picky
    assert (error.args, str(error)) == ((1,), "hm")
    assert type(rebuilt({**data, "attributes": {}}, {"Picky": Picky})) is RemoteError


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "torch.load", "__main__.no", "depin_nb.nothing", "..", "json", "SystemExit"]
)
def test_only_exception_classes_are_known(name):
    assert known(name, {"no": print}) is None


def test_no_file_is_read_on_a_workers_word(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret\n" * 3)
    frames = [[str(secret), 1, "f", ""], [str(secret), 2, "g", "what the worker says"], ["/dev/zero", 1, "h", ""]]
    error = rebuilt({**described(ValueError("x")), "frames": frames}, {})
    assert "the secret" not in str(error.__notes__)
    assert "what the worker says" in str(error.__notes__)


def test_descriptions_are_data_and_bounded():
    deep = ValueError("y" * 100_000)
    for _ in range(40):
        try:
            raise KeyError("k") from deep
        except KeyError as error:
            deep = error
    data = decode(encode(described(deep)))
    assert len(encode(data)) < 100_000
    assert type(rebuilt(data, {})) is KeyError


def test_too_much_by_value_is_refused_before_anything_is_spent():
    numbers = MAX_HANDED_BYTES // 4 + 1
    code = "kept = []\nfor x, y in loader:\n    opt.zero_grad()\n    loss = criterion(model(x), y)\n    loss.backward()\n    opt.step()\n"
    *_, error, hub = leased(SETUP, code + f"    kept.append(torch.zeros({numbers}))\n")
    assert "hands more than 64 MB to the notebook (`append`)" in str(error)
    assert hub.entries == 0


# --- %depin debug -----------------------------------------------------------------------------------------


def test_the_failing_lease_runs_again_on_copies():
    theirs = both("raise ValueError(width)")[1]
    before = generators(), theirs[0]["net"].fc.weight.clone(), theirs[0]["net"].calls
    error = debug.rerun()
    assert type(error) is ValueError
    frames = list(traceback.walk_tb(error.__traceback__))
    assert [f.f_code.co_name for f, _ in frames if "torch" not in f.f_code.co_filename] == ["<module>", "forward", "check"]
    assert frames[-1][0].f_locals["width"] == 6
    assert frames[-1][0].f_locals["self"] is not theirs[0]["net"]
    assert (generators(), theirs[0]["net"].calls) == (before[0], before[2])
    assert torch.equal(theirs[0]["net"].fc.weight, before[1])


def test_a_failure_that_does_not_repeat():
    both("torch.manual_seed(0); Flag.up and 1 / 0".replace("Flag.up", "(lambda m: m.setdefault('n', []).append(1) or len(m['n']) > 0)({})"))
    failed = debug._last[0]
    assert type(debug.rerun(failed)) is ZeroDivisionError
    assert debug.rerun(type(failed)(failed.shipment, failed.state, failed.units[:2], failed.spec)) is None


def test_nothing_has_failed():
    leased(SETUP, "for x, y in loader:\n    opt.zero_grad()\n    criterion(model(x), y).backward()\n    opt.step()\n")
    with pytest.raises(UsageError, match="no run of this kernel has failed"):
        debug.rerun()


def test_the_debugger_stands_at_the_users_line():
    from IPython.core.debugger import Pdb
    from IPython.core.interactiveshell import InteractiveShell

    from depin_nb.jupyter.debugging import post_mortem

    both("raise ValueError(width)")
    out = io.StringIO()
    pdb = Pdb(stdin=io.StringIO("p width * 7\nup\np tuple(x.shape)\nq\n"), stdout=out)
    pdb.use_rawinput = False
    shell = InteractiveShell.instance()
    try:
        error = post_mortem(shell, pdb)
    finally:
        InteractiveShell.clear_instance()
    assert type(error) is ValueError
    assert "42" in out.getvalue()
    assert "(8, 6)" in out.getvalue()
