"""One worker, `sync`: a leased cell leaves bit for bit what the local one leaves, also when that worker is lost."""

from functools import cache
from itertools import pairwise

import pytest
from catalogue import catalogue
from comparing import compare
from holding import exact
from inprocess import leased, local

CELLS = catalogue()
_local = cache(lambda name: local(CELLS[name]))


def same(name, **options):
    """Runs a cell leased and compares everything with the local run; the hub."""
    there = leased(CELLS[name], **options)
    if there[3] is not None and _local(name)[3] is None:
        raise there[3]
    exact(_local(name), there, CELLS[name].ignored)
    return there[4]


@pytest.mark.parametrize("name", CELLS)
def test_exact(name):
    assert same(name).entries >= 1


@pytest.mark.parametrize("name", CELLS)
def test_lost_worker(name):
    """The one worker is lost after its first lease."""
    hub = same(name, lease=2, lose_after=1)
    assert hub.lose_after is None or len(hub.leases) == 1
    seen = [index for lease in hub.leases for index in lease]
    assert all(b == a + 1 or b == 0 for a, b in pairwise(seen)), seen


FIRST = """
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    raise ValueError(i)
"""


def test_an_exception_in_the_first_iteration_leaves_what_it_left_here():
    """The probe meets it, so nothing is leased; names, weights and generators are as far as the iteration came."""
    setup = CELLS["plain"].setup
    there = leased(setup, FIRST)
    exact(local(setup, FIRST), there)
    assert there[4].entries == 0


__all__ = ["compare"]
