"""Three workers, `local`: other numbers than one process's, but the same lines, the same counts and the same names left behind."""

from functools import cache

import pytest
from catalogue import catalogue
from comparing import NOT_THE_CELLS
from holding import same_structure
from inprocess import local
from running import Trained, merged_by_pass, row_of

from depin_nb import wiring

CELLS = catalogue()
FIRST = CELLS["plain"].setup
ENOUGH = 8  # iterations of which three workers take some each
shared = {}  # cells of the test below: whether more than one worker took a part
_local = cache(lambda name: local(CELLS[name]))


@pytest.fixture(scope="module")
def three(home):
    """One hub and its three workers for all cells."""
    return wiring.connect("local", workers=3)


@pytest.mark.parametrize("name", CELLS)
def test_the_same_lines_and_names(three, name):
    cell = CELLS[name]
    ours, _, _, error = _local(name)
    trained = Trained(three, cell, strategy="local")
    assert type(trained.error).__name__ == type(error).__name__, trained.error
    strategy, passes = row_of(trained.run_id).strategy, merged_by_pass(trained.run_id)
    if cell.solo:
        assert "one worker runs every iteration in order" in strategy
        assert cell.solo in strategy
    else:
        assert strategy.startswith("local")
    workers = sum(1 for d in trained.statuses[-1].devices if d.iterations)
    if cell.solo:
        assert 1 <= workers <= len(passes)  # one does each pass
    elif max(map(len, passes), default=0) >= ENOUGH:
        shared[name] = workers > 1
    for indices in passes:
        assert sorted(indices) == list(range(len(indices)))
    if cell.by_value:
        assert set(trained.namespace) - NOT_THE_CELLS == set(ours) - NOT_THE_CELLS
    else:
        same_structure(_local(name), (*trained.ran[:3], trained.error), cell.ignored)


def test_nearly_all_were_shared():
    """Not each: where units come one by one, the worker that is done may be first to take the next one every time."""
    if len(shared) < 20:
        pytest.skip("only with the cells above")
    assert sum(shared.values()) >= 0.9 * len(shared), [name for name, more in shared.items() if not more]


SCHEDULED = """
small = nn.Linear(8, 2)
sgd = torch.optim.SGD(small.parameters(), lr=0.1)
sched = OneCycleLR(sgd, max_lr=0.1, total_steps=2 * len(loader))
rates = []
for epoch in range(2):
    for x, y in loader:
        sgd.zero_grad()
        loss = criterion(small(x), y)
        loss.backward()
        sgd.step()
        sched.step()
        rates.append(sched.get_last_lr()[0])
"""


def test_per_batch_schedulers_stand_where_one_process_has_them(three):
    ours = local(FIRST, SCHEDULED)[0]
    theirs = Trained(three, FIRST, SCHEDULED, strategy="local").checked().namespace
    assert theirs["rates"] == ours["rates"]
    assert theirs["sched"].last_epoch == ours["sched"].last_epoch == 16
    assert theirs["sgd"].param_groups[0]["lr"] == ours["sgd"].param_groups[0]["lr"]
