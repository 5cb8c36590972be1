"""Generators that a leased cell begins: in later cells they go on as they would have here, and leave nothing of ours behind."""

import ast
import gc
import linecache

import pytest
import torch
from inprocess import InProcessHub, generators, seed

from depin_nb.loop.cell import LeasedCell
from depin_nb.loop.find.forms import LOOPS
from depin_nb.loop.split.expressions import RUNTIME

SETUP = """
import torch, torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset
X, Y = torch.randn(12, 3), torch.randint(0, 2, (12,))
loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
model = nn.Linear(3, 2)
criterion = nn.CrossEntropyLoss()
opt = torch.optim.SGD(model.parameters(), lr=0.1)
"""
EPOCHS = """
def epochs(n):
    for epoch in range(n):
        total, best = 0.0, None
        for i, (x, y) in enumerate(loader):
            opt.zero_grad()
            out = model(x)
            loss = criterion(out, y)
            loss.backward()
            opt.step()
            total += loss.item()
            def scaled(t):
                return t.detach().sum() * 2
            marks = [scaled(o).item() for o in out if epoch or i]
            if best is None or loss.item() < best:
                best = loss.item()
        else:
            total = total / (i + 1)
        yield epoch, total, best, sum(marks), scaled
"""
BEGUN = """
run = epochs(4)
e, total, best, marks, _ = next(run)
print(e, total, best, marks)
"""
ON = "e, total, best, marks, scaled = next(run); print(e, total, best, marks, scaled(X).item())"
OTHER = """
for x, y in loader:
    opt.zero_grad()
    criterion(model(x) * 2, y).backward()
    opt.step()
print(next(run)[:2])
"""


def notebook(cells, lease):
    """(namespace, printed text, generators, the leased entries) after the cells; those that `lease` names are leased where it says so."""
    space, entries = {"__name__": "__main__"}, 0
    printed = []
    space["print"] = lambda *parts: printed.append(parts)
    seed()
    for place, code in enumerate([SETUP, *cells]):
        name = f"<cell {place}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)

        def run(tree, name=name):
            exec(compile(ast.fix_missing_locations(tree), name, "exec"), space)

        if place - 1 in lease:
            hub = InProcessHub()
            LeasedCell(code, space, name).run(hub, run)
            entries += hub.entries
        else:
            run(ast.parse(code))
    return space, printed, generators(), entries


PLACES = {
    "defined before": ([EPOCHS, BEGUN, ON, ON], {1}),
    "defined in the cell": ([EPOCHS + BEGUN, ON, ON], {0}),
    "not begun in the cell": ([EPOCHS, "run = epochs(4)\nlist(epochs(1))", ON, ON], {1}),
    "another leased cell between": ([EPOCHS, BEGUN, OTHER, ON], {1, 2}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_generator_goes_on_in_a_later_cell(place):
    cells, lease = PLACES[place]
    ours, text, after, _ = notebook(cells, set())
    theirs, leased_text, leased_after, entries = notebook(cells, lease)
    assert leased_text == text
    assert leased_after == after
    assert entries == len(lease)
    assert all(torch.equal(a, b) for a, b in zip(ours["model"].parameters(), theirs["model"].parameters(), strict=True))
    assert RUNTIME not in theirs
    assert RUNTIME not in theirs["epochs"].__code__.co_names
    if "scaled" in theirs:
        assert RUNTIME not in theirs["scaled"].__code__.co_names
    del theirs["run"]
    gc.collect()
    assert not any(name.startswith("__depin_") for name in theirs), LOOPS
