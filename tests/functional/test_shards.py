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
