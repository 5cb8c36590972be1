import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from depin_nb.core.amount import DPN, USD, Amount
from depin_nb.core.errors import AmountError, BudgetExhausted
from depin_nb.metering.budget import Budget


def usd(units):
    return Amount(units, USD)


def test_a_reservation_beyond_the_cap_is_refused_with_the_figures():
    budget = Budget.of(usd(100), run_id="run-1").reserve(usd(60))
    assert budget.left == usd(40)
    assert budget.allows(usd(40))
    assert not budget.allows(usd(41))
    with pytest.raises(BudgetExhausted) as caught:
        budget.reserve(usd(41))
    assert caught.value.run_id == "run-1"
    assert Amount.from_dict(caught.value.budget) == usd(100)


def test_what_a_lease_did_not_use_is_free_again():
    budget = Budget.of(usd(100)).reserve(usd(60)).commit(usd(60), usd(10))
    assert (budget.spent, budget.reserved, budget.left) == (usd(10), usd(0), usd(90))
    assert budget.reserve(usd(90)).release(usd(90)) == budget


def test_a_lease_never_costs_more_than_was_reserved():
    budget = Budget.of(usd(100)).reserve(usd(10))
    with pytest.raises(AmountError):
        budget.commit(usd(10), usd(11))
    with pytest.raises(AmountError):
        budget.release(usd(11))
    with pytest.raises(AmountError):
        budget.reserve(usd(-1))


def test_the_warning_comes_at_four_fifths_spent():
    assert not Budget(usd(100), usd(79)).warning
    assert Budget(usd(100), usd(80)).warning
    assert not Budget.of(None).reserve(usd(10**12)).warning


def test_a_budget_of_zero_lets_free_work_through():
    budget = Budget.of(usd(0))
    assert budget.reserve(usd(0)) == budget
    with pytest.raises(BudgetExhausted):
        budget.reserve(usd(1))


def test_raising_the_cap_and_never_below_what_is_committed():
    budget = Budget.of(usd(10)).reserve(usd(10))
    assert budget.raise_to(usd(20)).left == usd(10)
    assert budget.raise_to(None).left is None
    with pytest.raises(AmountError):
        budget.raise_to(usd(9))
    with pytest.raises(AmountError):
        Budget.of(Amount(5, DPN)).reserve(usd(1))


class Spending(RuleBasedStateMachine):
    """Any history of reserving, committing, releasing and re-capping, refused steps included."""

    def __init__(self):
        super().__init__()
        self.budget = Budget.of(usd(1_000))
        self.out = []
        self.spent = 0

    @rule(units=st.integers(0, 400))
    def reserve(self, units):
        with contextlib.suppress(BudgetExhausted):
            self.budget = self.budget.reserve(usd(units))
            self.out.append(units)

    @rule(share=st.integers(0, 100), pick=st.integers(0, 50))
    def commit(self, share, pick):
        if self.out:
            units = self.out.pop(pick % len(self.out))
            actual = units * share // 100
            self.budget = self.budget.commit(usd(units), usd(actual))
            self.spent += actual

    @rule(pick=st.integers(0, 50))
    def release(self, pick):
        if self.out:
            self.budget = self.budget.release(usd(self.out.pop(pick % len(self.out))))

    @rule(cap=st.integers(0, 2_000))
    def recap(self, cap):
        with contextlib.suppress(AmountError):
            self.budget = self.budget.raise_to(usd(cap))

    @invariant()
    def never_beyond_the_cap(self):
        assert self.budget.spent + self.budget.reserved <= self.budget.cap
        assert self.budget.reserved == usd(sum(self.out))
        assert self.budget.spent == usd(self.spent)


TestSpending = Spending.TestCase


@given(st.integers(-5, 5), st.integers(-5, 5), st.integers(-5, 5))
def test_no_budget_can_be_built_that_breaks_the_invariant(cap, spent, reserved):
    with contextlib.suppress(AmountError):
        budget = Budget(usd(cap), usd(spent), usd(reserved))
        assert 0 <= budget.committed.units <= cap
