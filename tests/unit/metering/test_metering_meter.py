import pytest
from book import BOOK
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.amount import DPN, USD, Amount, Tag
from depin_nb.core.errors import AmountError, ConfigError
from depin_nb.metering.meter import Meter, lease_cost


def test_a_lease_costs_its_flops_at_the_profiles_price():
    assert lease_cost(BOOK, "phone", 10**12) == Amount(150_000, DPN)
    assert lease_cost(BOOK, "laptop", 5 * 10**11) == Amount(60_000, DPN)
    assert lease_cost(BOOK, "phone", 1) == Amount(1, DPN)  # rounded up
    assert lease_cost(BOOK, "phone", 0) == Amount(0, DPN)
    assert lease_cost(BOOK, "local", 10**18) == Amount(0, DPN)
    with pytest.raises(ConfigError):
        lease_cost(BOOK, "toaster", 1)
    with pytest.raises(ValueError, match="negative"):
        lease_cost(BOOK, "phone", -1)


@given(st.integers(0, 10**24), st.integers(0, 10**24))
def test_cutting_work_into_leases_never_pays_less_and_at_most_a_unit_more_each(one, two):
    whole = lease_cost(BOOK, "phone", one + two).units
    parts = lease_cost(BOOK, "phone", one).units + lease_cost(BOOK, "phone", two).units
    assert whole <= parts <= whole + 1
    assert whole == -(-(one + two) * 150_000 // 10**12)  # exact, also beyond a float's 53 bits


def test_the_meter_adds_up_and_tags():
    meter = Meter(BOOK, window_s=10)
    meter.start(100.0)
    assert meter.projected(5) is None
    assert meter.projected(0).amount == Amount(0, USD)
    assert meter.rate_per_h(101.0).amount == Amount(0, USD)
    meter.charge("a", Amount(1_000_000, DPN), 10, 102.0)
    meter.charge("b", Amount(500_000, DPN), 5, 105.0)
    assert meter.accrued("a") == Amount(1_000_000, DPN)
    assert meter.accrued("nobody") == Amount(0, DPN)
    assert meter.accrued() == Amount(1_500_000, DPN)
    assert meter.spent().amount == Amount(1_500, USD)
    assert meter.spent().tag is Tag.METERED
    assert meter.projected(15).amount == Amount(3_000, USD)
    assert meter.projected(15).tag is Tag.ESTIMATED
    assert meter.projected(None) is None


def test_the_rate_looks_at_the_window_only():
    meter = Meter(BOOK, window_s=10)
    meter.start(0.0)
    meter.charge("a", Amount(1_000_000, DPN), 1, 5.0)
    assert meter.rate_per_h(5.0).amount == Amount(1_000 * 720, USD)  # 1,000 micro-dollars in 5 s
    assert meter.rate_per_h(14.0).amount == Amount(1_000 * 360, USD)  # the window is full: in 10 s
    assert meter.rate_per_h(15.0).amount == Amount(0, USD)  # it has left the window
    assert meter.rate_per_h(15.0).tag is Tag.ESTIMATED


def test_only_tokens_are_charged():
    meter = Meter(BOOK)
    with pytest.raises(AmountError):
        meter.charge("a", Amount(1, USD), 1, 0.0)
    with pytest.raises(ValueError, match="negative"):
        meter.charge("a", Amount(-1, DPN), 1, 0.0)
    assert meter.accrued() == Amount(0, DPN)
