"""What the analysis says of a body: what may be shared, what one worker must do and why, what follows from the iteration's index."""

import ast
import linecache

import pytest
import torch
from cells_carried import CELLS, SETUP, TEXT
from inprocess import leased, local

from depin_nb.core.errors import ReplayError, ShipError
from depin_nb.core.state import State
from depin_nb.loop.analysis.analyse import analyse
from depin_nb.loop.paths import overlaps, path_of, read, split, write
from depin_nb.loop.ship.carry import carried_values, read_carried, refuse_lost, write_carried

COMMON = """
import random, torch, torch.nn as nn
from collections import deque
model = nn.Linear(3, 2)
other = nn.Linear(3, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
opt2 = torch.optim.SGD(other.parameters(), lr=0.1)
loader = [torch.ones(4, 3)] * 4
"""
STEP = "opt.zero_grad(); loss = model(x).sum(); loss.backward(); opt.step()"


def facts_of(body, setup="", plain=frozenset(), target="x"):
    """Facts of `for x in loader: body`, with `setup` run first as a cell of its own."""
    name = f"<{abs(hash(setup))}>"
    source = COMMON + setup
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), space)
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    loop = ast.parse(f"for {target} in loader:\n{lines}\n").body[0]
    return analyse(loop, space.__getitem__, plain_target=set(plain))


@pytest.mark.parametrize("name", CELLS)
def test_the_reason_of_each_cell(name):
    *_, hub = leased(CELLS[name])
    reason = hub.plans[0].solo_reason
    assert (CELLS[name].solo in reason and reason.startswith("line ")) if CELLS[name].solo else reason is None


@pytest.mark.parametrize("name", [n for n in CELLS if not CELLS[n].solo])
def test_several_workers_leave_the_same_structure(name):
    ours, text, _, _ = local(CELLS[name])
    theirs, leased_text, _, error, _ = leased(CELLS[name], workers=3)
    if error is not None:
        raise error
    assert len(leased_text.splitlines()) == len(text.splitlines())
    assert {n for n, v in ours.items() if isinstance(v, int)} == {n for n, v in theirs.items() if isinstance(v, int)}


FOLLOWS = {
    "ptr = (ptr + 8) % n\nx = x * ptr": True,
    "lr *= 0.5\nx = x * lr": True,
    "ptr = min(ptr * 2, 64)\nx = x[:ptr]": True,
    "ptr = (ptr + len(x)) % n\nx = x * ptr": False,
    "ptr = (ptr + lr) % n\nlr = lr * 0.5\nx = x * ptr": False,
    "lr = lr * x.mean().item()\nx = x * lr": False,
    "if ptr < 9:\n    ptr = ptr + 8\nx = x * ptr": False,
    "ptr = (ptr + random.randrange(8)) % n\nx = x * ptr": False,
}


@pytest.mark.parametrize("body", FOLLOWS)
def test_a_number_that_follows_from_the_index_is_advised(body):
    (reason,) = facts_of(f"{body}\n{STEP}", "ptr, n, lr = 0, 64, 1.0").solo
    assert "kept from one iteration to the next" in reason
    assert ("computed from the loop's own index" in reason) is FOLLOWS[body]


GATHERED = {
    "history['lr'] += [loss.detach()]": "",
    "t.log += [loss]": "",
    "t.log += [loss]\nt.log.append(loss.detach())": "",
    "t.log += [loss]\nif len(t.log) > 3: break": "decides what the loop does next",
    "t.log += [loss]\nx = x + t.log[0]": "enters a computation",
    "t.log += [loss.detach()]\nopt.param_groups[0]['lr'] = float(t.log[-1])": "`t.log`",
    "t.log += [loss]\nt.log = t.log[-5:]": "`t.log` is handed",
    "t.log *= loss": "`t.log` is handed",
    "t.none += [loss]": "`t.none` is handed",
}


@pytest.mark.parametrize("body", GATHERED)
def test_a_list_under_a_path_that_is_only_added_to_is_bookkeeping(body):
    facts = facts_of(f"{STEP}\n{body}", "class T: pass\nt = T(); t.log, t.none, history = [], None, {'lr': []}")
    if not GATHERED[body]:
        assert (facts.solo, facts.carried, facts.placed) == ([], set(), set())
    else:
        assert any(GATHERED[body] in reason for reason in facts.solo), facts.solo


COUNTERS = {
    "step += 1": ("step = 7", {"step": (7, 1)}),
    "step -= 2": ("step = 7", {"step": (7, -2)}),
    "step = step + 1": ("step = 7", {"step": (7, 1)}),
    "step = 3 + step": ("step = 7", {"step": (7, 3)}),
    "step += world": ("step = 7; world = 4", {"step": (7, 4)}),
    "step += 1; step += 1": ("step = 7", {"step": (7, 2)}),
    "s['n'] += 1": ("s = {'n': 1}", {"s['n']": (1, 1)}),
    "t.state.step = t.state.step + 1": (
        "class T: pass\nt = T(); t.state = T(); t.state.step = 0",
        {"t.state.step": (0, 1)},
    ),
    "t.tick()": ("class T:\n    n = 0\n    def tick(self):\n        self.n += 1\nt = T(); t.n = 5", {"t.n": (5, 1)}),
    "bump()": ("n = 2\ndef bump():\n    global n\n    n += 1", {"n": (2, 1)}),
}


@pytest.mark.parametrize("line", COUNTERS)
def test_counters_follow_the_index(line):
    setup, wanted = COUNTERS[line]
    name = next(iter(wanted))
    facts = facts_of(f"{line}\nif {name} > 2:\n    x = x * {name}\n{STEP}", setup)
    assert facts.counters == wanted
    assert facts.solo == []


NO_COUNTERS = [
    "if random.random() < 0.5:\n    step += 1",
    "if x.sum() > 3:\n    continue\nstep += 1",
    "step += len(x)",
    "step *= 2",
    "for _ in range(3):\n    step += 1",
    "try:\n    model(x)\n    step += 1\nexcept ValueError:\n    pass",
    "step = max(step + 1, 3)",
]


@pytest.mark.parametrize("body", NO_COUNTERS)
def test_what_is_no_counter_is_kept_and_met(body):
    facts = facts_of(f"{body}\n{STEP}", "step = 0")
    assert facts.counters == {}
    assert facts.solo == []
    facts = facts_of(f"{body}\nx = x * step\n{STEP}", "step = 0")
    assert "`step`" in facts.solo[0]


FED_BACK = {
    "if min(history) < 0.1:\n    break\nhistory.append(loss.item())": ("history = [1.0]", "`history`"),
    "if len(history) > 3:\n    x = x * 2\nhistory.append(loss.item())": ("history = []", "`history`"),
    "buffer.append(x)\nx = torch.stack(random.sample(buffer, 1))[0]": ("buffer = deque(maxlen=9)", "`buffer`"),
    "scale = 0.9 * scale + 0.1 * loss.item()\nx = x * scale": ("scale = 1.0", "`scale`"),
    "m.add(loss.item())\nif m.mean() < 0.1:\n    break": (
        "class M:\n    def __init__(self):\n        self.s = self.n = 0\n    def add(self, v):\n        self.s += v\n        self.n += 1\n"
        "    def mean(self):\n        return self.s / max(1, self.n)\nm = M()",
        "`m.s`",
    ),
    "for group in opt.param_groups:\n    group['lr'] = lr\nlr *= 0.99": ("lr = 0.1", "`lr`"),
    "for _ in range(repeats):\n    model(x)\nrepeats = repeats + int(loss.item() > 1)": ("repeats = 1", "`repeats`"),
    "seen += len(x)\nif seen > 9:\n    flag = True\nif flag:\n    x = x * 2": ("seen, flag = 0, False", "`flag`"),
    "w = x[ptr:ptr + 2]\nptr = (ptr + 2) % 4": ("ptr = 0", "`ptr`"),
}


@pytest.mark.parametrize("body", FED_BACK)
def test_what_comes_back_needs_one_worker(body):
    setup, name = FED_BACK[body]
    facts = facts_of(f"{body}\n{STEP}", f"loss = None\n{setup}")
    assert any(name in reason for reason in facts.solo), facts.solo
    assert all(reason.startswith("line ") for reason in facts.solo)


BOOKKEEPING = [
    "history.append(loss.item())\nif len(history) % 3 == 0:\n    print(sum(history) / len(history))",
    "total += loss.item() * len(x)\nseen += len(x)\nprint(total / seen)",
    "counts.update([1, 2])\nprint(counts)",
    "best = min(best, 3.0)\nprint(best)",
    "log.write(history)\nhistory.append(1)",
]


@pytest.mark.parametrize("body", BOOKKEEPING)
def test_bookkeeping_is_shared(body):
    setup = (
        "from collections import Counter\nimport io\nhistory, total, seen, counts, best, log = [], 0.0, 0, Counter(), 9.0, io.StringIO()"
    )
    assert facts_of(f"{STEP}\n{body}", setup).solo == []


BACK = "model(x).sum().backward()"
FUNCTIONAL = """
g = torch.autograd.grad(model(x).sum(), list(model.parameters()))
with torch.no_grad():
    for p, d in zip(model.parameters(), g):
        p -= 0.1 * d
"""
CLOSURE = """
def closure():
    opt.zero_grad()
    loss = model(x).sum()
    loss.backward()
    return loss
opt.step(closure)
"""
SEVERAL = """
for o in [opt, opt2]:
    o.zero_grad()
model(other(x)[:, :1] * x).sum().backward()
for o in (opt, opt2):
    o.step()
"""
APART = f"""
opt.zero_grad()
{BACK}
opt.step()
if n % 3 == 0:
    opt2.zero_grad()
    other(x).sum().backward()
    opt2.step()
"""
SHARED = """
opt.zero_grad()
(model(x) * other(x)).sum().backward()
opt.step()
if n % 3 == 0:
    opt2.step()
    opt2.zero_grad()
"""
GRADIENTS = {
    f"{BACK}\nif n % 2 == 0:\n    opt.step()\n    opt.zero_grad()": "gathered",
    f"{BACK}\nopt.step()": "aren't cleared",
    BACK: "aren't cleared",
    f"opt.zero_grad()\n{BACK}": "after the loop",
    f"{BACK}\nopt.step()\nopt.zero_grad()": "",
    SEVERAL: "",
    f"model.zero_grad()\n{BACK}\nopt.step()": "",
    f"for p in model.parameters():\n    p.grad = None\n{BACK}\nopt.step()": "",
    f"{BACK}\nopt.step()\nfor p in model.parameters():\n    if p.grad is not None:\n        p.grad.zero_()": "",
    FUNCTIONAL: "",
    f"opt.zero_grad()\nother(x).sum().backward()\n{BACK}\nopt.step()": "",
    APART: "",
    SHARED: "gathered",
    CLOSURE: "",
    f"clear()\n{BACK}\nopt.step()": "",
    "step(x)": "",
}


@pytest.mark.parametrize("body", GRADIENTS)
def test_gradients_over_iterations(body):
    setup = f"n = 0\ndef clear():\n    opt.zero_grad()\ndef step(x):\n    clear()\n    {BACK}\n    opt.step()"
    facts = facts_of(body, setup)
    wanted = GRADIENTS[body]
    assert wanted in facts.solo[0] if wanted else facts.solo == [], facts.solo
    assert facts.grads is bool(wanted)


def test_schedulers_by_identity():
    setup = (
        "class T: pass\nt = T(); t.sched = torch.optim.lr_scheduler.StepLR(opt, 2)\ns = t.sched\n"
        "def after():\n    t.sched.step()\nclass Own:\n    def go(self):\n        self.s.step()\nown = Own(); own.s = t.sched"
    )
    for call in ("after()", "t.sched.step()", "s.step()", "own.go()"):
        facts = facts_of(f"{STEP}\n{call}", setup)
        assert [type(each).__name__ for each in facts.stepped.values()] == ["StepLR"]
        assert facts.solo == []
    facts = facts_of(f"{STEP}\nif n % 2:\n    s.step()", f"{setup}\nn = 0")
    assert "some iterations" in facts.solo[0]


def test_a_callee_says_whose_line_it_is():
    setup = "class T:\n    last = None\n    def run(self, x):\n        if self.last is not None and self.last > 1:\n            x = x * 2\n        self.last = x.sum().item()\n        return x\nt = T()"  # fmt: skip  # noqa: E501
    reason = facts_of(f"x = t.run(x)\n{STEP}", setup).solo[0]
    assert "of run(): `t.last`, kept from one iteration to the next, decides" in reason


def test_recursion_and_missing_sources_are_kept_whole():
    setup = "def down(x, n):\n    return x if n == 0 else down(x, n - 1)\nexec('def hidden(a): a.append(1); return a')\nnotes = []"
    assert facts_of(f"x = down(x, 3)\n{STEP}", setup).solo == []
    facts = facts_of(f"x = x * len(hidden(notes))\n{STEP}", setup)
    assert "`notes`" in facts.solo[0]


@pytest.mark.parametrize(
    ("body", "leaves"),
    [
        ("if loss.item() < 1:\n    break", True),
        ("if bool(x.sum() > 3):\n    raise ValueError", True),
        ("if n == 4:\n    break", False),
        ("for k in range(3):\n    break", False),
        ("pass", False),
    ],
)
def test_whether_the_body_may_leave_the_loop(body, leaves):
    assert facts_of(f"{STEP}\n{body}", "n = 0").leaves is leaves


def test_only_what_is_read_first_is_shipped():
    facts = facts_of(f"y = x * 2\n{STEP}\nif n:\n    z = y", "n = 0")
    assert {"y", "loss", "z"} <= facts.needless
    assert "n" not in facts.needless


def test_the_same_batch_each_time_is_said_in_a_method_too():
    setup = "class T:\n    def __init__(self):\n        self.X = torch.ones(4, 3)\nt = T()"
    body = "opt.zero_grad()\nmodel(t.X).sum().backward()\nopt.step()"
    assert facts_of(body, setup, plain={"i"}, target="i").caveats == ["each iteration sees the same full batch: more workers won't help"]
    assert facts_of(body.replace("t.X", "t.X[i:i + 2]"), setup, plain={"i"}, target="i").caveats == []


# --- paths and what is carried ------------------------------------------------------------------------------


def test_paths():
    node = ast.parse("self.state['epoch'].n", mode="eval").body
    assert path_of(node) == ("self.state['epoch'].n", True)
    assert path_of(ast.parse("meters[k].sum", mode="eval").body) == ("meters", False)
    assert path_of(ast.parse("f(x).y", mode="eval").body) is None
    assert split("a.b['c'][0]") == ("a", ((False, "b"), (True, "c"), (True, 0)))
    assert [overlaps("a.b", "a"), overlaps("a", "a['x']"), overlaps("a.b", "a.bc")] == [True, True, False]
    env = {"a": {"b": [1, 2]}}
    write(env, "a['b'][1]", 5)
    assert read(env, "a['b']") == [1, 5]
    with pytest.raises(LookupError):
        write(env, "c.d", 1)


def carried(value):
    state = State()

    def put(slot, kind, tensor):
        state.tensors[slot], state.kinds[slot] = tensor.detach().clone(), kind

    read_carried({"h": value}, ("h",), put, state)
    return State.from_bytes(state.to_bytes())


def test_what_is_carried_comes_back_as_it_was():
    from collections import deque

    leaf = torch.ones(2, requires_grad=True)
    value = {"a": (torch.zeros(1), [leaf, 3]), 2: deque([torch.ones(1)], maxlen=4), "p": torch.nn.Parameter(torch.ones(1))}
    env = {"h": None}
    state = carried(value)
    refuse_lost(state, {"h"})
    write_carried(env, ("h",), state)
    again = env["h"]
    assert list(again) == ["a", 2, "p"]
    assert again["a"][1][0].requires_grad
    assert again["a"][1][1] == 3
    assert again[2].maxlen == 4
    assert torch.equal(again[2][0], torch.ones(1))
    assert isinstance(again["p"], torch.nn.Parameter)
    write_carried(env, ("h",), state)
    assert env["h"] is again, "what is there already stays"


def test_a_history_or_an_object_that_cannot_travel_is_an_error():
    grown = torch.ones(2, requires_grad=True) * 2
    refuse_lost(carried(grown), set())
    with pytest.raises(ShipError, match="history of gradients"):
        refuse_lost(carried([grown]), {"h"})
    with pytest.raises(ShipError, match="object"):
        refuse_lost(carried([grown, object()]), set())


@pytest.mark.parametrize(
    "structure", [3, (), ("tensor", "no", False, False, False), ("list", 4), ("dict", [[[], ("value", 1)]]), ("what", 1)]
)
def test_a_hostile_structure_is_refused(structure):
    with pytest.raises(ReplayError):
        carried_values(State(plain={"names/h": structure}))


GRAPH = """
net = CharRNN(nn.GRU)
adam = torch.optim.Adam(net.parameters(), lr=0.01)
hidden = None
for i in range(8):
    logits, hidden = net(tokens[:, 5 * i:5 * i + 5], hidden)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 5 * i + 1:5 * i + 6].flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
    print(i)
"""


@pytest.mark.parametrize("lease", [1, 3])
def test_a_graph_that_is_carried_raises_as_it_does_here(lease):
    _, text, _, error = local(SETUP + TEXT, GRAPH)
    _, leased_text, _, leased_error, _ = leased(SETUP + TEXT, GRAPH, lease=lease)
    assert type(error) is type(leased_error) is RuntimeError
    assert str(error) == str(leased_error)
    assert text == leased_text == "0\n"
