"""Item 5: workers that die, interrupts, controls. Every index of a pass ends in exactly one merged lease."""

import os
import signal
import threading

import pytest
import torch
from gates import CELL, SOLO_CELL, Gated, kill
from inprocess import local
from running import PATIENCE_S, Trained, entries_of, eventually, function, leases_of, merged_by_pass, row_of
from test_split import compare

from depin_nb import attach, wiring
from depin_nb.core.errors import HubDied, HubError, NoSuchRun
from depin_nb.session import reconnecting
from depin_nb.session.session import newest_kept
from depin_nb.testing.faults import kill_when


@pytest.fixture
def gate(tmp_path):
    gated = Gated(tmp_path)
    yield gated
    gated.open()


def idle(session):
    """All workers, once none of them works."""
    return eventually(lambda: (w := session.workers()) and all(d.state == "idle" for d in w) and w, "no worker is busy")


def holds_newest_merge(namespace, run_id):
    """Whether the model is what the journal has as the newest version, bit for bit."""
    kept = newest_kept(run_id).tensors
    mine = namespace["model"].state_dict()
    return all(torch.equal(kept[f"model/{name}"], value) for name, value in mine.items())


def changed(gate, namespace):
    """Whether training has moved the model from where the setup put it."""
    fresh = local(gate.setup, "pass")[0]["model"].state_dict()
    return any(not torch.equal(fresh[name], value) for name, value in namespace["model"].state_dict().items())


KILLS = [
    ("local", {"strategy": "local", "inner_steps": 3}),
    ("gang", {"strategy": "sync", "inner_steps": 3}),
]


@pytest.mark.parametrize(("kind", "options"), KILLS, ids=[k for k, _ in KILLS])
def test_a_killed_worker_costs_its_lease_and_nothing_else(session, gate, kind, options):
    gate.when_held(kill)
    theirs = Trained(session, gate.setup, CELL, **options).checked()
    gate.done()
    assert theirs.run.state == "finished"
    assert merged_by_pass(theirs.run_id) == [list(range(gate.batches))] * 2
    assert theirs.namespace["lines"] == [(e, i) for e in range(2) for i in range(gate.batches)]
    assert [line.split()[:2] for line in theirs.text.splitlines()] == [[str(e), str(i)] for e in range(2) for i in range(gate.batches)]
    assert "open" in {state for _, state, _ in leases_of(theirs.run_id)}  # the killed worker's lease came to nothing
    assert holds_newest_merge(theirs.namespace, theirs.run_id)
    assert any("is gone" in notice for notice in theirs.run.status.notices)


def test_a_killed_solo_worker_changes_nothing_at_all(session, gate):
    ours, text, generators, error = local(gate.setup, SOLO_CELL)
    assert error is None
    gate.when_held(kill)
    theirs = Trained(session, gate.setup, SOLO_CELL).checked()
    gate.done()
    assert theirs.text == text
    compare(ours, theirs.namespace)
    assert theirs.generators == generators
    assert merged_by_pass(theirs.run_id) == [list(range(gate.batches))] * 2
    assert len(entries_of(theirs.run_id)) == 3  # one went on where the killed worker's had stopped


def test_a_kill_that_waits_for_its_moment(session, gate):
    """The quickstart's own fault."""

    def plug(pid):
        name = next(w["name"] for w in session.hub.call("hub")["workers"] if w["pid"] == pid)
        kill = kill_when(session, name, lambda status, device: device.state == "working" and status.iterations_done > 0)
        assert kill.done.wait(PATIENCE_S)
        assert kill.pid == pid
        assert f"{name} (process {pid}) was killed at iteration" in repr(kill)

    gate.when_held(plug)
    theirs = Trained(session, gate.setup, CELL, strategy="local", inner_steps=2).checked()
    gate.done()
    assert merged_by_pass(theirs.run_id) == [list(range(gate.batches))] * 2


def interrupt(_pid):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.mark.parametrize("options", [{"strategy": "local", "inner_steps": 3}, {"strategy": "sync", "inner_steps": 3}, {"workers": 1}])
def test_an_interrupt_leaves_the_last_merge_and_no_busy_worker(session, gate, options):
    gate.when_held(interrupt, then_open=False)
    theirs = Trained(session, gate.setup, CELL, **options)
    gate.done()
    gate.open()  # not before: the cell returns while its worker still computes
    assert type(theirs.error) is KeyboardInterrupt
    assert holds_newest_merge(theirs.namespace, theirs.run_id)
    assert changed(gate, theirs.namespace)
    assert theirs.namespace["alias"] is theirs.namespace["model"]
    assert not [n for n in theirs.namespace if n.startswith("__depin")]
    row = row_of(theirs.run_id)
    assert row.state == "interrupted"
    assert row.settled
    (merged,) = merged_by_pass(theirs.run_id)
    assert merged
    assert gate.at not in merged
    if options.get("strategy") != "local":  # others' later iterations may be merged before it there
        assert merged == list(range(len(merged)))
    idle(session)
    # what was replayed is what was merged, or less
    assert len(theirs.namespace["lines"]) <= len(merged)
    # the objects are whole: the same loop goes on, here and there
    again = session.train(function(FIT, theirs.namespace))
    assert again.state == "finished"


FIT = """
def fit():
    for x, y in loader:
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
"""


def test_stop_from_outside_is_an_interrupt_and_the_run_says_stopped(session, gate):
    gate.when_held(lambda _: session.control(None, "stop"), then_open=False)
    theirs = Trained(session, gate.setup, CELL, strategy="local", inner_steps=3)
    gate.done()
    gate.open()
    assert type(theirs.error) is KeyboardInterrupt
    assert row_of(theirs.run_id).state == "stopped"
    assert holds_newest_merge(theirs.namespace, theirs.run_id)
    assert changed(gate, theirs.namespace)
    idle(session)
    with pytest.raises(NoSuchRun):
        session.control(None, "stop")


def test_a_paused_run_gives_no_lease_and_goes_on_when_resumed(session, gate):
    counts = []

    def pause(_pid):
        assert session.control(None, "pause").state == "paused"
        gate.open()
        # what was out is merged; then nothing more
        eventually(lambda: all(d.state == "idle" for d in session.workers()), "the workers rest")
        status = session.statuses()[-1]
        counts.append((status.state, status.iterations_done))
        assert session.control(None, "resume").state == "running"

    gate.when_held(pause)
    theirs = Trained(session, gate.setup, CELL, strategy="local", inner_steps=3).checked()
    gate.done()
    ((state, done),) = counts
    assert state == "paused"
    assert done < 2 * gate.batches
    assert merged_by_pass(theirs.run_id) == [list(range(gate.batches))] * 2


def test_a_hub_that_can_not_come_back_leaves_the_last_merge_and_the_next_one_goes_on(session, gate, monkeypatch):
    def refused():
        raise HubError("the hub ended while it started")

    monkeypatch.setattr(reconnecting, "start_hub", refused)
    gate.when_held(lambda _: os.kill(session.info.pid, signal.SIGKILL))
    theirs = Trained(session, gate.setup, CELL, strategy="local", inner_steps=3)
    gate.done()
    assert isinstance(theirs.error, HubDied)
    assert f"`%depin up`, then `%%depin train --resume {theirs.run_id}`" in str(theirs.error)
    monkeypatch.undo()
    assert holds_newest_merge(theirs.namespace, theirs.run_id)
    assert changed(gate, theirs.namespace)
    assert not [n for n in theirs.namespace if n.startswith("__depin")]

    again = wiring.up("local", 2)
    assert again.info.pid != session.info.pid
    (shown,) = [row for row in wiring.runs() if row["run_id"] == theirs.run_id]
    assert shown["state"] == "running", "it waits a minute for its notebook"
    assert not shown["settled"]
    assert again.statuses()[-1].state == "waiting"
    assert again.control(theirs.run_id, "stop").state == "stopped"
    assert row_of(theirs.run_id).settled
    weights = attach(theirs.run_id).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in theirs.namespace["model"].state_dict().items())
    run = again.train(function(FIT, theirs.namespace))
    assert run.state == "finished"
