"""A tree of aggregators on real workers: one sums up what the others made; it is killed with their changes in its hands."""

from __future__ import annotations

import os
import signal

import pytest
from gates import CELL, Gated
from running import Trained, eventually, merged_by_pass

from depin_nb import wiring
from depin_nb.core import config
from depin_nb.hub.records.journal import Journal
from depin_nb.testing.faults import pid_of

OPTIONS = {"strategy": "local", "inner_steps": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory, nothing_left):
    """A state folder whose hub always lets workers sum up changes."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPIN_HOME", str(folder))
        patch.setenv("DEPIN_TREE_MB", "0")
        try:
            yield folder
            nothing_left(folder)
        finally:
            wiring.down()


@pytest.fixture
def session(home):
    return wiring.connect("local", workers=3)


@pytest.fixture
def gate(tmp_path):
    gated = Gated(tmp_path, width=220_000)  # a change of 1.1 MB in 4 bits
    yield gated
    gated.open()


def summed(run_id):
    """How many leases of each merge came as a part of a sum."""
    journal = Journal(config.journal_file())
    try:
        return [event.data["summed"] for event in journal.events(run_id) if event.kind == "merged"]
    finally:
        journal.close()


def exact(theirs, gate):
    assert theirs.run.state == "finished"
    assert merged_by_pass(theirs.run_id) == [list(range(gate.batches))] * 2
    assert theirs.namespace["lines"] == [(e, i) for e in range(2) for i in range(gate.batches)]


def parked(home):
    """{aggregator: changes that it has}"""
    found = {}
    for path in (home / "aggregating").glob("*/*/*/*"):
        found.setdefault(path.parents[2].name, []).append(path)
    return found


def test_a_worker_sums_up_what_the_others_made(session, gate):
    gate.open()
    theirs = Trained(session, gate.setup, CELL, **OPTIONS).checked()
    exact(theirs, gate)
    assert max(summed(theirs.run_id)) >= 2


def test_a_killed_aggregator_costs_no_change(session, gate, home):
    killed = []

    def kill_aggregator(holder):
        name = eventually(lambda: next((n for n, paths in parked(home).items() if paths), None), "changes are at an aggregator")
        busy = lambda: sum(d.state == "working" for d in session.statuses()[-1].devices)  # noqa: E731
        eventually(lambda: busy() <= 1, "the others have handed in")
        killed.append(pid_of(session, name))
        os.kill(killed[0], signal.SIGKILL)
        eventually(lambda: len(session.workers()) == 2, "the hub knows")

    gate.when_held(kill_aggregator)
    theirs = Trained(session, gate.setup, CELL, **OPTIONS).checked()
    gate.done()
    exact(theirs, gate)
    assert killed
    assert any("An aggregator is gone" in notice for notice in theirs.run.status.notices)
