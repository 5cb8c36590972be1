"""The lease table: what is legal, what is not, and that every path keeps the promises made about it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.training.lifecycle import COUNTED, FINAL, OWED, TABLE, IllegalTransition, LeaseState, Trigger, advance, diagram

S, T = LeaseState, Trigger


def run(*triggers: Trigger) -> LeaseState:
    state = S.OPEN
    for trigger in triggers:
        state = advance(state, trigger)
    return state


def test_the_ordinary_life() -> None:
    assert run(T.LEASE, T.SUBMIT, T.ACCEPT, T.MERGE, T.PAY) is S.PAID


def test_ways_back_to_the_queue() -> None:
    assert run(T.LEASE, T.EXPIRE) is S.OPEN
    assert run(T.LEASE, T.LOSE) is S.OPEN
    assert run(T.LEASE, T.SUBMIT, T.REJECT) is S.OPEN
    assert run(T.LEASE, T.SUBMIT, T.ACCEPT, T.LOSE) is S.OPEN  # a gang that broke


def test_work_beyond_a_break_is_paid_but_not_merged() -> None:
    state = run(T.LEASE, T.SUBMIT, T.ACCEPT, T.DISCARD)
    assert state in OWED
    assert state not in COUNTED
    with pytest.raises(IllegalTransition):
        advance(state, T.MERGE)
    assert advance(state, T.PAY) not in COUNTED


@pytest.mark.parametrize("before", [(), (T.LEASE,), (T.LEASE, T.SUBMIT, T.REJECT)])
def test_nothing_is_owed_for_what_was_never_accepted(before: tuple[Trigger, ...]) -> None:
    state = run(*before, T.DISCARD)
    assert state is S.CANCELLED
    assert state in FINAL


def test_an_illegal_transition_says_what_it_was() -> None:
    with pytest.raises(IllegalTransition) as caught:
        advance(S.PAID, T.PAY)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.state, again.trigger) == (S.PAID, T.PAY)
    assert "->" in str(again)


@given(st.lists(st.sampled_from(Trigger), max_size=40))
def test_any_history_keeps_the_promises(triggers: list[Trigger]) -> None:
    state, taken = S.OPEN, []
    for trigger in triggers:
        legal = (state, trigger) in TABLE
        try:
            state = advance(state, trigger)
        except IllegalTransition:
            assert not legal
        else:
            assert legal
            taken.append(trigger)
    assert taken.count(T.MERGE) <= 1
    assert taken.count(T.PAY) <= 1
    assert (T.MERGE in taken) == (state in COUNTED)  # counted once merged, for good
    if T.PAY in taken:
        assert T.ACCEPT in taken
        assert state in FINAL
    if state not in (S.OPEN, S.CANCELLED):
        assert taken[0] is T.LEASE


def test_every_state_can_be_reached_and_ends_somewhere() -> None:
    reached, frontier = {S.OPEN}, [S.OPEN]
    while frontier:
        here = frontier.pop()
        for (state, _), after in TABLE.items():
            if state is here and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(S)
    assert {S.PAID, S.DISCARDED_PAID, S.CANCELLED} == FINAL


def test_the_documented_diagram_is_the_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    assert f"```mermaid\n{diagram()}\n```" in page
