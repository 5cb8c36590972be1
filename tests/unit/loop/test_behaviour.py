"""What happens around the split: lost workers, errors with their lines, refusals, facts that decide on one worker."""

import ast

import pytest
import torch
from cells import CELLS, SETUP
from inprocess import generators, leased, local
from test_split import compare

from depin_nb.core.errors import RefusedLoop, ShipError
from depin_nb.loop.analysis.analyse import analyse
from depin_nb.loop.find.sites import find

LOST = [
    "plain",
    "enumerate, running mean",
    "meters and helpers",
    "hidden state",
    "gradient accumulation",
    "best inside",
    "random in the body",
]


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_lost_solo_worker_changes_nothing(name, after):
    ours, text, generators_, _ = local(SETUP, CELLS[name])
    theirs, leased_text, leased_generators, error, hub = leased(SETUP, CELLS[name], lose_after=after, lease=2)
    assert error is None
    assert leased_text == text
    compare(ours, theirs)
    assert leased_generators == generators_
    assert hub.lose_after is None


def test_every_iteration_is_leased_once():
    *_, hub = leased(SETUP, CELLS["plain"], lose_after=2, lease=3)
    assert [i for lease in hub.leases for i in lease] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]


ERROR = """
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    out = model(x)
    if i == 5:
        out = out[:, :1] @ out
    loss = criterion(out, y)
    loss.backward()
    opt.step()
    print(i, loss.item())
"""


def test_an_exception_is_the_users_own_at_its_iteration_and_line():
    ours, text, _, error = local(SETUP, ERROR)
    theirs, leased_text, _, leased_error, hub = leased(SETUP, ERROR)
    assert type(leased_error) is type(error) is RuntimeError
    assert str(leased_error) == str(error)
    assert leased_text == text
    assert all(torch.equal(a, b) for a, b in zip(ours["model"].parameters(), theirs["model"].parameters(), strict=True))
    lines = []
    trace = leased_error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<cell>":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    assert lines[-1] == 6
    assert hub.reason == "error"


def test_an_exception_in_the_first_iteration_costs_nothing():
    *_, error, hub = leased(SETUP, ERROR.replace("i == 5", "i == 0"))
    assert type(error) is RuntimeError
    assert hub.entries == 0


def test_users_own_exception_type():
    cell = "class Diverged(Exception): pass\n" + CELLS["plain"].replace(
        "losses.append(loss.item())", "if len(losses) > 3: raise Diverged('now', 3)\n        losses.append(loss.item())"
    )
    theirs, _, _, error, _ = leased(SETUP, cell)
    assert type(error) is theirs["Diverged"]
    assert error.args == ("now", 3)
    assert len(theirs["losses"]) == 4


REFUSED = {
    "no loop": ("print(1)", "no training loop"),
    "next": (
        "it = iter(loader)\nfor i in range(3):\n    if i:\n        x, y = next(it)\n"
        "    criterion(model(X), Y).backward()\n    opt.step()\n",
        "line 4: `next(it)`",
    ),
    "yield": (
        "def f():\n    for x, y in loader:\n        criterion(model(x), y).backward()\n        yield 1\nlist(f())",
        "line 4: a `yield`",
    ),
    "exec": ("for x, y in loader:\n    criterion(model(x), y).backward()\n    exec('1')\n", "line 3: `exec()`"),
    "items": ("for o in (lambda: 1 for _ in [1, 2]):\n    criterion(model(X), Y).backward()\n    opt.step()\n", "function objects"),
    "endless": ("import itertools\nfor i in itertools.count():\n    criterion(model(X), Y).backward()\n    opt.step()\n", "never ends"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_line_and_leave_everything(name):
    cell, words = REFUSED[name]
    theirs, _, _, error, hub = leased(SETUP, cell)
    assert isinstance(error, RefusedLoop)
    assert words in str(error)
    assert "->" in str(error)
    assert hub.entries == 0
    fresh = local(SETUP, "pass")[0]
    assert all(torch.equal(a, b) for a, b in zip(fresh["model"].state_dict().values(), theirs["model"].state_dict().values(), strict=True))


def test_a_model_that_cannot_be_pickled_is_named():
    cell = "class Stuck:\n    def __reduce__(self): raise TypeError('stuck')\nmodel.extra = Stuck()\n" + CELLS["plain"]
    *_, error, hub = leased(SETUP, cell)
    assert isinstance(error, ShipError)
    assert "`model.extra`" in str(error)
    assert hub.entries == 0


SOLO = {
    "best inside": "`best`",
    "break on the running mean": "running",
    "gradient accumulation": "gradients",
    "hidden state": "`h`",
    "plain": None,
    "enumerate, running mean": None,
    "meters and helpers": None,
    "tensor sums": None,
    "global step and counters": None,
    "correct and total": None,
}


@pytest.mark.parametrize("name", SOLO)
def test_what_is_fed_back_needs_one_worker(name):
    *_, error, hub = leased(SETUP, CELLS[name])
    assert error is None
    reason = hub.plans[0].solo_reason
    assert (reason is None) == (SOLO[name] is None), reason
    if reason is not None:
        assert SOLO[name] in reason
        assert reason.startswith("line ")


def test_the_same_full_batch_is_said():
    *_, hub = leased(SETUP, CELLS["full batch"])
    assert hub.plans[0].facts.caveats == ["each iteration sees the same full batch: more workers won't help"]
    *_, hub = leased(SETUP, CELLS["range with get_batch"])
    assert hub.plans[0].facts.caveats == []


def test_where_a_loop_stands():
    namespace = local(SETUP, "pass")[0]
    found = find(CELLS["in a function"], namespace, "<cell>")
    assert [site.where() for site in found.sites] == [
        f"train_epoch(), line {found.sites[0].line}: for batch_idx, (x, y) in enumerate(loader)"
    ]


def test_counters_follow_the_index():
    loop = ast.parse("for x, y in loader:\n    step += 1\n    opt.zero_grad()\n    model(x).sum().backward()\n").body[0]
    facts = analyse(loop, {"step": 7}.__getitem__, plain_target=set())
    assert facts.counters == {"step": (7, 1)}


def test_the_probe_leaves_no_trace():
    ours = local(SETUP, "pass")
    generators_ = generators()
    theirs = leased(SETUP, "if False:\n" + "\n".join("    " + line for line in CELLS["plain"].splitlines()))
    assert theirs[2] == ours[2] == generators_ or theirs[2] == ours[2]


KEPT = """
class Box: pass
box, seen = Box(), {{}}
box.parts = {{}}
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    out = model(x)
    loss = criterion(out, y)
    loss.backward()
    opt.step()
    wide = out.detach().mean().expand(300, 300).clone()
    {kept}
"""
TOLD = {
    "box.wide = wide": "",
    "seen['wide'] = wide": "",
    "seen[i] = out.detach()": "",
    "seen.setdefault('all', []).append(wide)": "",
    "seen[f'wide{0}'] = wide": "`seen['wide0']`",
    "setting = 'w'; box.parts[setting * 2] = wide": "`box.parts['ww']`",
    "seen[i] = wide": "`seen[0]`, `seen[1]`, `seen[2]` and 5 more",
}


@pytest.mark.parametrize("kept", TOLD)
def test_what_is_too_large_to_come_back_is_said_once(kept):
    """Where the text tells the place, it comes back at the loop's end."""
    cell = KEPT.format(kept=kept)
    ours, theirs = local(SETUP, cell), leased(SETUP, cell)
    assert theirs[3] is None
    said = [text for _, text in theirs.warned if "stayed on the worker" in text]
    assert len(said) == bool(TOLD[kept])
    if said:
        assert TOLD[kept] in said[0]
        assert "append it to a list" in said[0]
    else:
        assert theirs.warned == []
        compare(ours[0], theirs[0])
