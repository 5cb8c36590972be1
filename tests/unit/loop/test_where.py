"""Which loop is found, what `while` and `next()` become, and what is refused: up to the trees, and with one worker."""

import ast
import functools
import itertools
import os
import sys

import pytest
import torch
from cells_where import CELLS, SETUP
from hubs import InProcessHub
from inprocess import beside, leased, local

from depin_nb.core.errors import RefusedLoop
from depin_nb.loop.find.counting import counted, passes
from depin_nb.loop.find.definitions import class_of, parse_function, spelled_out
from depin_nb.loop.find.forms import form
from depin_nb.loop.find.reach import Reach
from depin_nb.loop.find.sites import find
from depin_nb.loop.split.instrument import Instrument

# --- where a loop stands -------------------------------------------------------------------------


def sites(code, setup=SETUP):
    return find(code, local(setup, "pass")[0], "<cell>").sites


WHERE = {
    "t = Trainer(model, opt, loader)\nt.train(2)": "Trainer._run_epoch()",
    "t = Trainer(model, opt, loader)\nlist(t.epochs(1))": "Trainer.epochs()",
    "fit(loader)": "fit()",
    "make_fit(model, opt)(loader)": "fit()",
    "outer_fit(1)": "one_epoch()",
    "train_one(model, loader)": "train_one()",
    "global_fit(1)": "global_fit()",
    "for b in loader: Strategy(model, opt).run(b)": "the cell",
    "class R:\n    def go(self):\n        for x, y in loader: train_step(model, x, y)\nR().go()": "R.go()",
}


@pytest.mark.parametrize("code", WHERE)
def test_where_a_loop_stands(code):
    places = [site.where().partition(",")[0] for site in sites(code)]
    assert WHERE[code] in places


def test_a_method_of_the_same_name_elsewhere_does_not_train():
    """`meter.run(...)` isn't `strategy.run(...)`: the loop of an evaluation is no site."""
    code = "m = Meter()\nfor x, y in loader:\n    m.run(criterion(model(x), y).item())\nfor b in loader:\n    Strategy(model, opt).run(b)\n"
    assert [site.line for site in sites(code)] == [4]
    code = """
def evaluate(loader, meter):
    for x, y in loader:
        meter.run(criterion(model(x), y).item())
    return meter.mean
r = Runner(Strategy(model, opt))
r.fit(loader, 1)
evaluate(loader, r.meter)
"""
    assert [site.where().partition(",")[0] for site in sites(code)] == ["Runner.fit()"]


def test_a_method_of_an_unknown_object_is_known_by_its_name():
    code = "def go(s):\n    for b in loader:\n        s.run(b)\nimport copy\ngo(copy.copy(Strategy(model, opt)))\n"
    assert [site.where().partition(",")[0] for site in sites(code)] == ["go()"]


def test_the_loop_around_another_that_also_trains_is_the_one():
    assert [site.line for site in sites(CELLS["where: critic inside"].code)] == [4]
    code = "for epoch in range(2):\n    for x, y in loader:\n        train_step(model, x, y)\n    print(epoch)\n"
    assert [site.line for site in sites(code)] == [2]


def test_a_module_is_named_by_its_file():
    cell = CELLS["where: module"]
    with beside(cell.files):
        (site,) = find(cell.code, local(SETUP, "pass")[0], "<cell>").sites
    assert site.where() == "train() in helpers.py, line 18: for x, y in loader"


def test_a_module_that_changed_after_it_was_loaded_is_refused():
    head = "def train(model, loader, opt, criterion):\n    for x, y in loader:\n"
    body = "        opt.zero_grad()\n        criterion(model(x), y).backward()\n        opt.step()\n"
    with beside({"stale_own": head + body}) as folder:
        space = local(SETUP, "import stale_own")[0] | {"stale_own": __import__("stale_own")}
        with open(os.path.join(folder, "stale_own.py"), "w", encoding="utf-8") as file:
            file.write(head + "        extra = x + 1\n" + body)
        from depin_nb.loop.cell import LeasedCell

        with pytest.raises(RefusedLoop, match="changed after it was loaded"):
            LeasedCell("stale_own.train(model, loader, opt, criterion)", space, "<cell>").run(None, lambda tree: None)


def test_an_import_that_fails_is_the_cells_own_error():
    *_, error, _ = leased(SETUP, "import broken_own\nfor x, y in loader:\n    train_step(model, x, y)\n")
    assert type(error) is ModuleNotFoundError


def test_functions_are_themselves_again():
    space, *_, error, _ = leased(CELLS["where: trainer of an earlier cell"])
    assert error is None
    assert "__depin_loops__" not in space
    assert not [n for n in space["Trainer"]._run_epoch.__code__.co_names if n.startswith("__depin")]


def test_closures_of_one_function_are_both_leased():
    code = "a, b = make_fit(model, opt), make_fit(model, opt)\n"
    ours = local(SETUP + code, "print(a(loader), b(loader))")
    theirs = leased(SETUP + code, "print(a(loader), b(loader))")
    assert theirs[3] is None
    assert theirs[1] == ours[1]
    assert theirs[4].entries == 2


AFTERWARDS = """
def fit(n):
    def epoch():
        for x, y in loader:
            opt.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            opt.step()
        return loss.item()
    return [epoch() for _ in range(n)]
class Mine(Trainer):
    def train(self, epochs):
        for x, y in self.loader:
            self._run_batch(x, y)
print(fit(1))
again = make_fit(model, opt)
print(again(loader))
t = Mine(model, opt, loader)
t.train(1)
kept = []
for x, y in loader:
    def closure(scale=1.0):
        return scale * criterion(model(x), y)
    kept.append(lambda value: value * model[0].weight.sum().item())
    opt.zero_grad()
    closure().backward()
    opt.step()
print(closure().item())
"""


def test_functions_of_a_leased_cell_run_afterwards():
    """Those that it defines, closures of a factory, methods, and what a body defines: by themselves, and leased again."""
    ours = local(SETUP, AFTERWARDS)[0]
    theirs, *_, error, _ = leased(SETUP, AFTERWARDS)
    assert error is None
    for space in (ours, theirs):
        torch.manual_seed(3)
        space["results"] = [*space["fit"](1), space["again"](space["loader"]), space["t"].train(1), space["closure"](2.0).item()]
        space["results"] += [space["kept"][0](1.0), *space["model"][0].weight[0].tolist()]
    assert theirs["results"] == ours["results"]
    assert [site.where().partition(",")[0] for site in find("fit(1)", theirs, "<cell>").sites] == ["epoch()"]


def test_nothing_of_ours_travels(monkeypatch):
    """A class with a leased method is written as the user has it: no hub, no namespace."""
    programs, opened = [], InProcessHub.open
    monkeypatch.setattr(
        InProcessHub, "open", lambda hub, shipment, *rest: programs.append(shipment.program) or opened(hub, shipment, *rest)
    )
    *_, error, _ = leased(SETUP + "\nheld = 'the notebook only'\n", CELLS["where: trainer of an earlier cell"].code)
    assert error is None
    assert programs
    assert not [p for p in programs if b"the notebook only" in p or b"__depin_loops__" in p]


# --- trees ------------------------------------------------------------------------------------------


def test_private_names_and_super_are_spelled_out():
    tree = spelled_out(ast.parse("class _A:\n    def f(me, x):\n        super().f()\n        return me.__x + x.__y__ + me._z\n"))
    assert "super(__class__, me).f()" in ast.unparse(tree)
    assert "me._A__x + x.__y__ + me._z" in ast.unparse(tree)


@pytest.mark.parametrize(
    ("name", "owner"), [("A.f", "A"), ("A.f.<locals>.g", "A"), ("f", ""), ("f.<locals>.B.g", "B"), ("f.<locals>.g", "")]
)
def test_the_class_of_a_function(name, owner):
    assert class_of(name) == owner


def test_an_indented_function_keeps_its_text_and_lines():
    code = 'if True:\n    def f():\n        text = """\nflush left\n"""\n        return text\n'
    namespace = local(code, "pass")[0]
    node, _ = parse_function(namespace["f"])
    assert (node.lineno, node.body[1].lineno) == (2, 6)
    assert node.body[0].value.value == "\nflush left\n"


def test_reach_follows_what_holds_functions():
    space = local(SETUP, "pass")[0]
    names = {
        f.__code__.co_name
        for f in Reach().visit([functools.partial(space["train_one"], space["Runner"](space["Strategy"](1, 2)))]).functions
    }
    assert {"wrapper", "train_one", "fit", "run", "step"} <= names


# --- counting -----------------------------------------------------------------------------------------


def counted_here(test, start, bound, stride, leaves, ahead, limit=50):
    """The passes of the loop itself."""
    value, count = start, 0
    while count < limit:
        if not leaves and not eval(f"value {test} bound"):
            return count
        count += 1
        value += stride if ahead else 0
        if leaves and eval(f"value {test} bound"):
            return count
        value += 0 if ahead else stride
    return None


@pytest.mark.parametrize("test", ["<", "<=", ">", ">=", "!=", "=="])
def test_passes_are_those_of_the_loop(test):
    numbers = [-3, 0, 1, 4, 5]
    for start, bound, stride, leaves, ahead in itertools.product(numbers, numbers, [-2, -1, 1, 3, 0.5], [False, True], [False, True]):
        if not leaves and ahead:
            continue  # the test stands before the body
        found = passes(test, start, bound, stride, leaves, ahead)
        expected = counted_here(test, start, bound, stride, leaves, ahead)
        if expected is None:
            assert isinstance(found, itertools.count) or len(found) > 40
        else:
            assert len(found) == expected, (test, start, bound, stride, leaves, ahead)


def test_a_tensor_does_not_count():
    with pytest.raises(RefusedLoop, match="counts with a Tensor"):
        passes("<", torch.tensor(0), 3, 1, False, False)


COUNTED = {
    "while step < n:\n    work()\n    step += 1": "step",
    "while n > step:\n    step = step + 2": "step",
    "while True:\n    step += 1\n    if step == n: break": "step",
    "while i < len(X):\n    i += size": "i",
    "while step < n:\n    if bad: continue\n    step += 1": None,
    "while step < n:\n    if bad: step += 1": None,
    "while step < n:\n    step += 1\n    n = n - 1": None,
    "while step < len(X):\n    X.append(1)\n    step += 1": None,
    "while step < n:\n    step += k\n    k = 2": None,
    "while step < n and ok:\n    step += 1": None,
    "while True:\n    if bad: continue\n    step += 1\n    if step == n: break": None,
    "while True:\n    step += 1\n    if step == n:\n        break\n    else:\n        pass": None,
}


@pytest.mark.parametrize("code", COUNTED)
def test_a_counter_is_recognised(code):
    found = counted(ast.parse(code).body[0])
    assert (found.counter if found else None) == COUNTED[code]


# --- forms ----------------------------------------------------------------------------------------------


def test_a_while_has_its_test_where_the_next_pass_begins():
    made = form(ast.parse("while hot():\n    if odd: continue\n    work()\nelse:\n    done()").body[0])
    assert ast.unparse(made.loop) == (
        "for __depin_pass__ in __depin_loops__.endless():\n"
        "    if odd:\n        if not hot():\n            __depin_ended__ = True\n            break\n        continue\n"
        "    work()\n    if not hot():\n        __depin_ended__ = True\n        break"
    )
    assert ast.unparse(made.guard) == "hot()"


def test_the_users_own_loop_is_left_alone():
    node = ast.parse("for x in loader:\n    work(next(model.parameters()), next(iter(loader)))").body[0]
    assert form(node).loop is node


REFUSED = {
    "for i in r:\n    if i % 2:\n        it = iter(loader)\n    b = next(it)\n    work(b)": "`it`, which this loop fetches from",
    "for i in r:\n    for k in range(3):\n        b = next(it)\n        work(b)": "`next(it)` in this place",
    "for i in r:\n    a = next(it)\n    b = next(it)": "`it` is fetched from twice",
    "for i in r:\n    b = next(it, 3)\n    work(b)": "`next(it)` in this place",
    "for i in r:\n    try: b = next(it)\n    except StopIteration:\n        if full: break\n        it = renew()\n        b = next(it)": (
        "`next(it)` on an iterator that only some iterations make"
    ),
    "while ok():\n    work(lambda: next(it))": "`next(it)` in this place",
}


@pytest.mark.parametrize("code", REFUSED)
def test_other_fetches_are_refused_with_their_line(code):
    with pytest.raises(RefusedLoop) as caught:
        form(ast.parse(code).body[0])
    assert REFUSED[code] in str(caught.value)
    assert str(caught.value).startswith("line ")
    assert "--single" in str(caught.value)


# --- what neither half can run ------------------------------------------------------------------------------

BODIES = {
    "await": (
        "async def go():\n    for x, y in loader:\n        train_step(model, x, y)\n        await other()\n",
        "line 1: the loop stands in an async function",
    ),
    "async for": ("async def go():\n    async for x, y in loader:\n        train_step(model, x, y)\n", "line 2: `async for`"),
    "yield": ("def go():\n    for x, y in loader:\n        yield train_step(model, x, y)\nlist(go())", "line 3: a `yield`"),
    "class": ("for x, y in loader:\n    class A: pass\n    train_step(model, x, y)\n", "line 2: a class"),
    "eval": ("for x, y in loader:\n    train_step(model, x, eval('y'))\n", "line 2: `eval()`"),
    "comprehension": ("l = [train_step(model, x, y) for x, y in loader]", "line 1: a comprehension"),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_cannot_be_split_says_what_works(name):
    code, words = BODIES[name]
    space, *_, error, hub = leased(SETUP, code)
    assert isinstance(error, RefusedLoop)
    assert words in str(error)
    assert "-> " in str(error)
    assert "--single" in str(error)
    assert hub.entries == 0
    assert "losses" in space


def test_hidden_names_stay_hidden():
    """What the plan shows of a rewritten `while` is the user's text; nothing of ours is left."""
    for name in ("while: counter", "while: next and renew", "while: on the loss", "for: two iterators"):
        space, *_, error, hub = leased(CELLS[name])
        assert error is None
        for plan in hub.plans:
            assert "__depin" not in plan.site.where() + " ".join(plan.facts.solo + plan.facts.caveats)
        assert not [n for n in space if n.startswith("__depin")]
    assert sites(CELLS["while: counter"].code)[0].header() == "while step < 8"


def test_a_count_is_planned_ahead():
    totals = {
        name: leased(CELLS[name])[4].plans[0].total for name in ("while: counter", "while: true and a break", "while: next and renew")
    }
    assert totals == {"while: counter": 8, "while: true and a break": 7, "while: next and renew": 10}


def test_a_value_bound_inside_a_condition_is_bound_in_the_body():
    """A lambda would keep it to itself."""
    body = ast.parse("if a() and (n := f()) > 2 > (m := g()):\n    use(n, m)").body
    made = ast.Module(body=Instrument(worker=True).body(body), type_ignores=[])
    bound = {n.target.id for n in ast.walk(made) if isinstance(n, ast.NamedExpr)}
    inside = {n.target.id for f in ast.walk(made) if isinstance(f, ast.Lambda) for n in ast.walk(f) if isinstance(n, ast.NamedExpr)}
    assert {"n", "m"} <= bound
    assert not {"n", "m"} & inside


def test_finding_is_quick(monkeypatch):
    """A cell's analysis parses each function once, and not those of installed packages."""
    parsed = []
    import depin_nb.loop.find.definitions as definitions

    real = definitions.parse_source
    monkeypatch.setattr(definitions, "parse_source", lambda source, code: parsed.append(code) or real(source, code))
    sites("r = Runner(Strategy(model, opt))\nr.fit(loader, 1)")
    assert all("site-packages" not in code.co_filename for code in parsed)
    assert len(parsed) <= 4 * len(set(parsed))
    assert sys.modules["depin_nb"]
