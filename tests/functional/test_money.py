"""Budgets and payouts of runs on simulated devices, which are paid."""

import os
import signal

import pytest
import torch
from gates import CELL, Gated
from running import Trained, journal, merged_by_pass, row_of

from depin_nb import attach, wiring
from depin_nb.core.amount import DPN, Amount, parse
from depin_nb.core.errors import BudgetExhausted, HubDied, HubError
from depin_nb.session import TrainOptions, reconnecting
from depin_nb.session.session import newest_kept

OPTIONS = {"strategy": "local", "inner_steps": 3, "bits": 8}


@pytest.fixture
def session(home):
    return wiring.connect("depin", workers=2)


@pytest.fixture
def gate(tmp_path):
    gated = Gated(tmp_path, width=256)
    yield gated
    gated.open()


def spent_of(run_id):
    with journal() as book:
        ((spent,),) = book._rows("SELECT spent_units FROM runs WHERE run_id=?", run_id)
    return Amount(spent, DPN)


def cost_of(session, gate):
    """What the whole cell costs, measured once by running it."""
    theirs = Trained(session, gate.setup, CELL, **OPTIONS).checked()
    return spent_of(theirs.run_id)


def same_weights(namespace, weights):
    return all(torch.equal(weights[name], value) for name, value in namespace["model"].state_dict().items())


def test_a_budget_ends_the_run_before_it_is_overspent(session, gate):
    whole = cost_of(session, gate)
    assert whole.units > 100
    cap = Amount(whole.units // 2, DPN)
    theirs = Trained(session, gate.setup, CELL, budget=cap, **OPTIONS)
    assert isinstance(theirs.error, BudgetExhausted)
    assert "--budget" in str(theirs.error)
    assert theirs.error.run_id == theirs.run_id
    spent = spent_of(theirs.run_id)
    assert Amount(0, DPN) < spent <= cap
    row = row_of(theirs.run_id)
    assert row.state == "budget"
    assert row.settled
    weights = attach(theirs.run_id).state_dict()
    assert same_weights(theirs.namespace, weights)
    merged = [i for pass_ in merged_by_pass(theirs.run_id) for i in pass_]
    assert len(theirs.namespace["lines"]) == len(merged) > 0
    report = wiring.verify(theirs.run_id)
    assert report.ok, report.problems
    assert sum(r.units_by_chain for r in report.rows) == spent.units


def test_no_money_starts_nothing(session, gate):
    before = wiring.runs()
    theirs = Trained(session, gate.setup, CELL, budget=parse("$0"), **OPTIONS)
    assert isinstance(theirs.error, BudgetExhausted)
    assert "--budget" in str(theirs.error)
    assert wiring.runs() == before
    assert theirs.namespace["lines"] == []
    # a plan is free
    plan = session.plan_cell(CELL, theirs.namespace, shell=None, options=TrainOptions(budget=parse("$0")))
    assert plan.iterations == gate.batches


def test_a_raised_budget_goes_on(session, gate):
    whole = cost_of(session, gate)

    def act(_pid):
        run = next(s for s in session.statuses() if not s.ended)
        assert session.control(run.run_id, "budget", Amount(2 * whole.units, DPN)).budget == Amount(2 * whole.units, DPN)

    gate.when_held(act)
    # enough for the pass's first half, in which the gate stands
    theirs = Trained(session, gate.setup, CELL, budget=Amount(whole.units * 3 // 4, DPN), **OPTIONS).checked()
    gate.done()
    assert theirs.run.state == "finished"
    assert merged_by_pass(theirs.run_id) == [list(range(gate.batches))] * 2
    assert wiring.verify(theirs.run_id).ok


def test_a_killed_hubs_run_is_settled_by_the_next_one(session, gate, monkeypatch):
    def refused():
        raise HubError("the hub ended while it started")

    monkeypatch.setattr(reconnecting, "start_hub", refused)
    gate.when_held(lambda _: os.kill(session.info.pid, signal.SIGKILL))
    theirs = Trained(session, gate.setup, CELL, **OPTIONS)
    gate.done()
    assert isinstance(theirs.error, HubDied)
    row = row_of(theirs.run_id)
    assert row.ended_at is None
    spent = spent_of(theirs.run_id)
    assert spent.units > 0
    monkeypatch.undo()
    session = wiring.connect("depin", workers=2)
    session.control(theirs.run_id, "stop")  # its notebook won't come back
    row = row_of(theirs.run_id)
    assert row.state == "stopped"
    assert row.settled
    report = wiring.verify(theirs.run_id)
    assert report.ok, report.problems
    assert sum(r.units_by_chain for r in report.rows) == spent.units
    run = attach(theirs.run_id)
    assert run.state == "stopped"
    assert same_weights(theirs.namespace, run.state_dict())
    assert len(run.metrics()["loss"]) == sum(len(p) for p in merged_by_pass(theirs.run_id))
    assert newest_kept(theirs.run_id).nbytes() > 0
    theirs = Trained(session, gate.setup, CELL, **OPTIONS).checked()
    assert theirs.run.state == "finished"
