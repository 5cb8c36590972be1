"""Three workers, `local`: other numbers than one process's, but the same lines, the same counts and the same names left behind."""

import re

import pytest
from cells import CELLS, SETUP
from inprocess import local
from running import Trained, merged_by_pass

from depin_nb import wiring

#: cells whose printed lines follow the numbers themselves
BY_VALUE = {"break on the running mean", "best inside"}
ONE_WORKER = {"break on the running mean", "best inside", "gradient accumulation", "hidden state"}


@pytest.fixture
def three(home):
    return wiring.connect("local", workers=3)


def structure(text):
    """The text with its numbers masked."""
    return [re.sub(r"-?\d+(\.\d+)?(e-?\d+)?|nan|inf", "#", line) for line in text.splitlines()]


@pytest.mark.parametrize("name", CELLS)
def test_the_same_lines_and_names(three, name):
    ours, text, _, error = local(SETUP, CELLS[name])
    assert error is None
    trained = Trained(three, SETUP, CELLS[name], strategy="local").checked()
    assert trained.run.state == "finished"
    assert set(trained.namespace) == set(ours)
    workers = sum(1 for d in trained.run.status.devices if d.iterations)
    assert workers == 1 if name in ONE_WORKER else workers > 1
    for indices in merged_by_pass(trained.run.run_id):
        assert sorted(indices) == list(range(len(indices)))
    if name not in BY_VALUE:
        assert structure(trained.text) == structure(text)


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
    ours = local(SETUP, SCHEDULED)[0]
    theirs = Trained(three, SETUP, SCHEDULED, strategy="local").checked().namespace
    assert theirs["rates"] == ours["rates"]
    assert theirs["sched"].last_epoch == ours["sched"].last_epoch == 16
    assert theirs["sgd"].param_groups[0]["lr"] == ours["sgd"].param_groups[0]["lr"]
