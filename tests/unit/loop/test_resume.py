"""A killed kernel's cell, rerun in a fresh namespace: what was merged is replayed without a worker; the end is as if never killed."""

import ast
import linecache
from dataclasses import replace

import pytest
import torch
from catalogue import catalogue
from hubs import InProcessHub
from inprocess import leased, local, run_in_folder
from test_split import compare

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import ResumeError
from depin_nb.core.lease import drawn_digest
from depin_nb.core.state import State
from depin_nb.loop.cell import LeasedCell
from depin_nb.loop.resume import Chapter

CELLS = catalogue()


class Killed(BaseException):
    """The kernel is gone."""


class Mortal(InProcessHub):
    """Keeps what the journal keeps, by loop entry; after `dies_after` leases the kernel that uses it is killed. `past`: what it resumes."""

    run_id = "run-past"

    def __init__(self, *, past=None, dies_after=None, lease=3):
        super().__init__(lease=lease)
        self.past, self.dies_after = past, dies_after
        self.chapters, self.logs, self.states = {}, {}, {}
        if past is not None:
            self.chapters, self.logs, self.states = (dict(d) for d in (past.chapters, past.logs, past.states))
        self.fed = {}

    def open(self, shipment, spec, state):
        entering = self.plans[-1]
        self.number = entering.number
        if spec.first == 0:
            chapter = Chapter(self.number, entering.site.header(), entering.site.where(), spec, entering.generators, 0, False)
            self.chapters[self.number], self.logs[self.number] = chapter, []
        assert spec.first == self.chapters[self.number].merged
        self.states[self.number] = state.to_bytes()
        return super().open(shipment, spec, state)

    def feed(self, units, *, closed):
        self.fed.update({u.index: drawn_digest(u.data) for u in units})
        return super().feed(units, closed=closed)

    def results(self):
        if self.dies_after is not None and len(self.leases) >= self.dies_after:
            raise Killed
        found = super().results()
        for part in found.parts:
            drawn = tuple(self.fed[part.first + i] for i in range(len(part.logs)))
            self.logs[self.number].append(replace(part, drawn=drawn))
            chapter = self.chapters[self.number]
            self.chapters[self.number] = replace(chapter, merged=chapter.merged + len(part.logs))
            self.states[self.number] = self.state.to_bytes()
        return found

    def close(self, reason):
        if reason in ("done", "exit"):
            self.chapters[self.number] = replace(self.chapters[self.number], complete=True)
        return super().close(reason)

    # --- as a Past ------------------------------------------------------------------------------------

    @property
    def last(self):
        return max(self.chapters, default=0)

    def chapter(self, number):
        found = self.chapters.get(number)
        return found if found is None or number == self.last else replace(found, complete=True)

    def parts(self, number, after):
        rest = [p for p in self.logs[number] if p.first >= after]
        return tuple(rest[:2])

    def end_state(self, number):
        return State.from_bytes(self.states[number])


def run_on(hub, cell, setup=None):
    """(what the cell left, whether its kernel was killed)."""
    was, code, files = cell.setup, cell.code, cell.files
    linecache.cache["<cell>"] = (len(code), None, code.splitlines(keepends=True), "<cell>")
    killed = []

    def run(namespace):
        try:
            LeasedCell(code, namespace, "<cell>").run(
                hub, lambda tree: exec(compile(ast.fix_missing_locations(tree), "<cell>", "exec"), namespace)
            )
        except Killed:
            killed.append(True)

    return run_in_folder(was if setup is None else setup, run, files), bool(killed)


def killed_at(cell, after, **options):
    hub = Mortal(dies_after=after, **options)
    ran, killed = run_on(hub, cell)
    assert killed, ran[3]
    hub.dies_after = None
    return hub


EXACT = [
    "plain",
    "enumerate, running mean",
    "meters and helpers",
    "hidden state",
    "gradient accumulation",
    "best inside",
    "random in the body",
    "in a function",
    "lbfgs on batches",
    "hidden state on an object",
    "a trainer class",
]


@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("name", EXACT)
def test_resumed_is_as_never_killed(name, after):
    cell = CELLS[name]
    ours, text, generators, error = local(cell)
    assert error is None
    past = Mortal(dies_after=after, lease=2)
    run_on(past, cell)  # a short one is killed after its last merge
    hub = Mortal(past=past, lease=2)
    (theirs, resumed_text, resumed_generators, error), _ = run_on(hub, cell)
    if error is not None:
        raise error
    assert resumed_text == text
    compare(ours, theirs)
    assert resumed_generators == generators
    # each iteration of each pass was computed once over both
    assert sum(map(len, past.leases)) + sum(map(len, hub.leases)) == sum(c.merged for c in hub.chapters.values())
    assert not [n for n in theirs if n.startswith("__depin")]


def test_killed_twice():
    cell = CELLS["plain"]
    ours, text, generators, _ = local(cell)
    first = killed_at(cell, 1, lease=2)
    second = Mortal(past=first, dies_after=2, lease=2)
    assert run_on(second, cell)[1]
    second.dies_after = None
    third = Mortal(past=second, lease=2)
    (theirs, resumed_text, resumed_generators, error), _ = run_on(third, cell)
    assert error is None
    assert (resumed_text, resumed_generators) == (text, generators)
    compare(ours, theirs)


def test_all_done_needs_no_worker():
    """Killed after the loop's last merge."""
    cell = CELLS["plain"]
    ours, text, generators, _ = local(cell)
    past = Mortal()
    run_on(past, cell)
    hub = Mortal(past=past)
    (theirs, resumed_text, resumed_generators, error), _ = run_on(hub, cell)
    assert error is None
    assert (resumed_text, resumed_generators) == (text, generators)
    compare(ours, theirs)
    assert hub.entries == 0
    assert hub.leases == hub.probes == []


def test_merged_to_the_end_and_not_closed():
    cell = CELLS["plain"]
    past = Mortal()
    run_on(past, cell)
    ours, text, *_ = local(cell)
    past.chapters[past.last] = replace(past.chapters[past.last], complete=False)
    hub = Mortal(past=past)
    (theirs, resumed_text, _, error), _ = run_on(hub, cell)
    assert error is None
    assert resumed_text == text
    assert hub.entries == 0
    compare(ours, theirs)


SHUFFLED = """
for epoch in range(3):
    for x, y in loader:
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    print(epoch, sum(losses), torch.rand(1).item())
"""


def test_an_unseeded_notebook_draws_what_was_drawn_then():
    """The fresh kernel's generators stand elsewhere: the journal's are taken, so each sample still comes once a pass."""
    cell = replace(CELLS["plain"], code=SHUFFLED, setup=CELLS["plain"].setup + "\nlosses = []\n")
    past = killed_at(cell, 4, lease=2)
    ours = leased(cell)
    hub = Mortal(past=past, lease=2)
    ran, _ = run_on(hub, cell, setup=cell.setup + "\ntorch.manual_seed(99); random.seed(99)\n")
    theirs, text, _, error = ran
    assert error is None
    assert ran.warned == []
    assert text == ours[1]
    compare(ours[0], theirs)


def test_other_items_are_said():
    code = "for i in items():\n    opt.zero_grad()\n    model(X[i : i + 4]).sum().backward()\n    opt.step()\n"
    setup = CELLS["plain"].setup + "\ndef items():\n    yield from "
    cell = replace(CELLS["plain"], code=code, setup=f"{setup}[0, 1, 2, 3, 4, 5]\n")
    past = killed_at(cell, 1, lease=2)
    hub = Mortal(past=past, lease=2)
    ran, _ = run_on(hub, cell, setup=f"{setup}[5, 4, 3, 2, 1, 0]\n")
    assert ran[3] is None
    ((kind, said),) = ran.warned
    assert kind == "RuntimeWarning"
    assert "iterates other items than run-past did" in said
    assert run_on(Mortal(past=past, lease=2), cell)[0].warned == []


DIFFERENT = {
    "another loop": (lambda code: code.replace("for x, y in loader", "for x, y in list(loader)"), "", "the loop is `"),
    "fewer iterations": (
        None,
        "loader = torch.utils.data.DataLoader(loader.dataset, batch_size=2 * loader.batch_size)",
        "iterations in pass 1",
    ),
    "another model": (None, "model[0] = torch.nn.Linear(model[0].in_features, model[0].out_features, bias=False)", "is missing"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_named_and_nothing_has_changed(name):
    change, more, words = DIFFERENT[name]
    cell = replace(CELLS["plain"], code=SHUFFLED, setup=CELLS["plain"].setup + "\nlosses = []\n")
    past = killed_at(cell, 2)
    cell = cell if change is None else replace(cell, code=change(cell.code))
    hub = Mortal(past=past)
    (theirs, text, _, error), _ = run_on(hub, cell, setup=f"{cell.setup}\n{more}\n")
    assert type(error) is ResumeError
    assert words in str(error)
    assert "run-past" in str(error)
    assert "->" in str(error)
    assert text == ""
    assert hub.entries == 0
    assert theirs["losses"] == []


def test_a_loop_that_then_was_not_entered_is_refused():
    cell = CELLS["plain"]
    past = Mortal()
    run_on(past, cell)
    assert past.last >= 2
    del past.chapters[1]
    hub = Mortal(past=past)
    (_, _, _, error), _ = run_on(hub, cell)
    assert type(error) is ResumeError
    assert "pass 1" in str(error)
    assert hub.entries == 0


def test_an_interrupt_while_replaying_leaves_the_weights():
    cell = replace(CELLS["plain"], code=SHUFFLED, setup=CELLS["plain"].setup + "\nlosses = []\n")
    past = killed_at(cell, 4, lease=2)
    fresh = local(cell.setup, "pass")[0]["model"].state_dict()

    class Interrupted(Mortal):
        pass

    hub = Interrupted(past=past)
    past.parts = lambda number, after: (_ for _ in ()).throw(KeyboardInterrupt)
    raised = []

    def run(namespace):
        try:
            LeasedCell(cell.code, namespace, "<cell>").run(
                hub, lambda tree: exec(compile(ast.fix_missing_locations(tree), "<cell>", "exec"), namespace)
            )
        except KeyboardInterrupt:
            raised.append(True)

    theirs = run_in_folder(cell.setup, run)[0]
    assert raised
    assert all(torch.equal(a, b) for a, b in zip(fresh.values(), theirs["model"].state_dict().values(), strict=True))


def test_generators_survive_the_journal():
    cell = CELLS["plain"]
    past = killed_at(cell, 1)
    then = decode(past.chapters[1].generators)
    assert set(then) == {"torch", "python", "numpy", "own"}
    assert encode(then) == past.chapters[1].generators
