"""`kill -9` of the hub at a chosen moment: the same cell goes on with the same run, and nothing is counted twice or left."""

import os
import random
import signal
import subprocess
import sys

import pytest
import torch
from gates import CELL, SOLO_CELL, Gated
from inprocess import local
from running import Trained, eventually, journal, merged_by_pass, row_of
from test_split import compare

from depin_nb import wiring
from depin_nb.core import config
from depin_nb.core.errors import HubError
from depin_nb.hub import processes
from depin_nb.hub.client import HubClient
from depin_nb.hub.launch import find_hub, stop_hub
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.session.session import newest_kept
from depin_nb.testing.promises import broken


@pytest.fixture
def gate(tmp_path):
    gated = Gated(tmp_path)
    yield gated
    gated.open()


def kill_hub(_pid=None):
    """And waits until another one is there, which the notebook starts."""
    before = find_hub()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: (now := find_hub()) is not None and now.pid != before.pid, "another hub is there")
    return before


def holds_newest_merge(namespace, run_id):
    kept = newest_kept(run_id).tensors
    return all(torch.equal(kept[f"model/{name}"], value) for name, value in namespace["model"].state_dict().items())


def pids(session):
    return {w["name"]: w["pid"] for w in session.hub.call("hub")["workers"]}


def the_same_run(trained, batches, passes=2):
    """One run, each iteration in it once, and it has finished."""
    assert {s.run_id for s in trained.statuses} == {trained.run_id}
    assert merged_by_pass(trained.run_id) == [list(range(batches))] * passes
    assert row_of(trained.run_id).state == "finished"
    assert [r["run_id"] for r in wiring.runs() if r["state"] != "finished"] == []
    assert wiring.check(trained.run_id).ok


def test_one_worker_comes_to_the_same_bits(session, gate):
    ours, text, generators, error = local(gate.setup, SOLO_CELL)
    assert error is None
    before = pids(session)
    gate.when_held(kill_hub)
    theirs = Trained(session, gate.setup, SOLO_CELL).checked()
    gate.done()
    assert theirs.text == text
    compare(ours, theirs.namespace)
    assert theirs.generators == generators
    the_same_run(theirs, gate.batches)
    assert pids(session) == before, "the workers outlived the hub, and the next one has them"
    assert "Its hub was killed and is back; the run goes on." in theirs.run.status.notices


@pytest.mark.parametrize("options", [{"strategy": "local", "inner_steps": 3}, {"strategy": "sync", "inner_steps": 3}])
def test_several_workers_hand_in_what_they_have(session, gate, options, capfd):
    said = []

    def watched(pid):
        said.append(kill_hub().scheduler)

    gate.when_held(watched)
    theirs = Trained(session, gate.setup, CELL, **options).checked()
    gate.done()
    the_same_run(theirs, gate.batches)
    assert theirs.namespace["lines"] == [(e, i) for e in range(2) for i in range(gate.batches)]
    assert holds_newest_merge(theirs.namespace, theirs.run_id)
    assert find_hub().scheduler == said[0], "at the same port, where it is free"
    assert theirs.ran.errors.count(f"the hub was gone and is back; {theirs.run_id} goes on") == 1
    with journal() as book:
        assert [e.kind for e in book.events(theirs.run_id)].count("reopened") == 1


def test_it_may_be_killed_in_every_pass(session, tmp_path):
    gated = Gated(tmp_path, at=5, batches=12)
    kills = []

    def twice(pid):
        kills.append(kill_hub())
        gated.open()
        eventually(lambda: session.statuses() and session.statuses()[-1].entry == 2, "the second pass")
        kills.append(kill_hub())

    gated.when_held(twice)
    theirs = Trained(session, gated.setup, CELL, strategy="local", inner_steps=2).checked()
    gated.done()
    assert len({hub.pid for hub in kills}) == 2
    the_same_run(theirs, gated.batches)
    assert holds_newest_merge(theirs.namespace, theirs.run_id)


@pytest.mark.parametrize("seed", range(3))
def test_it_may_be_killed_at_any_operation(session, tmp_path, monkeypatch, seed):
    """The hub is gone when the kernel asks for the n-th time: in an opening, between two entries, at the end."""
    gated = Gated(tmp_path, at=2, batches=8)
    draw = random.Random(f"killed {seed}")
    asked, at, call = [0], {draw.randrange(1, 8), draw.randrange(8, 24)}, HubClient.call

    def killing(self, op, **request):
        asked[0] += op in ("run_start", "needs") or "run" in request
        if asked[0] in at:
            at.remove(asked[0])
            os.kill(find_hub().pid, signal.SIGKILL)
        return call(self, op, **request)

    ours, text, _, error = local(gated.setup, SOLO_CELL)
    assert error is None
    monkeypatch.setattr(HubClient, "call", killing)
    theirs = Trained(session, gated.setup, SOLO_CELL).checked()
    monkeypatch.undo()
    assert theirs.text == text
    compare(ours, theirs.namespace)
    the_same_run(theirs, gated.batches)


def test_nobody_starts_a_hub_for_a_run_that_was_ended_in_order(session, gate):
    gate.when_held(lambda _: stop_hub(find_hub()))
    theirs = Trained(session, gate.setup, CELL, strategy="local", inner_steps=3)
    gate.done()
    assert isinstance(theirs.error, (HubError, KeyboardInterrupt))
    assert find_hub() is None
    assert row_of(theirs.run_id).state == "interrupted"


def test_down_ends_the_workers_of_a_hub_that_was_killed(session):
    known = processes.read()
    assert {k.pid for k in known} == set(pids(session).values())
    os.kill(session.info.pid, signal.SIGKILL)
    eventually(lambda: find_hub() is None, "the hub is gone")
    assert [k for k in known if k.process() is None] == [], "they wait for another hub"
    wiring.down()
    assert [k for k in known if k.process() is not None] == []


def test_a_worker_that_finds_no_hub_ends(tmp_path):
    command = [sys.executable, "-m", "depin_nb.worker", "tcp://127.0.0.1:1", "--name", "lonely", "--patience", "0.2"]
    done = subprocess.run(command, env={**os.environ, "DEPIN_HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "lonely can't reach the hub at tcp://127.0.0.1:1" in done.stderr


def test_the_money_is_exact_after_all_of_it(home):
    wiring.down()
    chain = EmbeddedChain(config.chain_file())
    assert broken(home, chain, counted=False) == []
    chain.close()
