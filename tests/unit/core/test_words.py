"""Amounts, errors, leases and statuses: the words that every part shares."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core import errors
from depin_nb.core.amount import DPN, USD, Amount, Figure, Tag, parse
from depin_nb.core.errors import AmountError, DepinError
from depin_nb.core.lease import EntrySpec, Lease, Report, StrategyConfig, Unit
from depin_nb.core.status import Device, Status


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("$0.10", Amount(100_000)),
        ("0.1", Amount(100_000)),
        ("25 DPN", Amount(25_000_000, DPN)),
        ("1,000.5 usd", Amount(1_000_500_000)),
        (".5", Amount(500_000)),
    ],
)
def test_amounts_are_read(text, amount):
    assert parse(text) == amount


@pytest.mark.parametrize("text", ["", "$", "-1", "1e3", "$1 DPN", "5 XYZ", "0.0000001", "nan", "1 2", "$1; rm"])
def test_what_is_no_amount(text):
    with pytest.raises(AmountError) as caught:
        parse(text)
    assert caught.value.hint


@given(st.integers(0, 10**15), st.sampled_from([USD, DPN]))
def test_text_is_read_back(units, currency):
    amount = Amount(units, currency)
    assert parse(amount.text(currency.decimals)) == amount


def test_currencies_do_not_mix_and_floats_are_no_money():
    for wrong in (lambda: Amount(1) + Amount(1, DPN), lambda: Amount(1) < Amount(1, DPN), lambda: Amount(1.5), lambda: Amount(True)):
        with pytest.raises(AmountError):
            wrong()
    assert Amount(10).times(3) == Amount(30)
    assert str(Figure(Amount(31_200), Tag.METERED)) == "$0.031 metered"
    assert Amount(1).text() == "$0.000001"


def every_error():
    return [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, DepinError)]


@pytest.mark.parametrize("kind", every_error())
def test_errors_keep_their_fields_through_pickling(kind):
    error = kind("it broke", line=3, reason="why")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.message, back.line, back.reason, str(back)) == (kind, "it broke", 3, "why", str(error))
    with pytest.raises(AttributeError):
        _ = error.nothing
    assert kind.__doc__


def test_a_hint_follows_the_message():
    assert str(errors.NoHub("no hub is running")).endswith("-> `%depin up local` or `%depin up depin` starts one.")
    assert str(DepinError("x", hint="do y")) == "x\n  -> do y"


def test_what_travels_comes_back():
    spec = EntrySpec("p", ("a", "b"), StrategyConfig("local", False, bits=4), 45, 7, 10, 0.1, 100, 32, 3)
    assert EntrySpec.from_dict(copy.deepcopy(spec.to_dict())) == spec
    lease = Lease(
        "l",
        "r",
        1,
        2,
        (Unit(4, b"x", 8), Unit(6, b"y", 8)),
        gang="g",
        rank=1,
        size=2,
        groups=(2, 3),
        group_samples=(16, 16),
        group_size=(2, 2),
    )
    assert Lease.from_dict(copy.deepcopy(lease.to_dict())) == lease
    assert (lease.first, lease.samples) == (4, 16)
    report = Report("l", 2, (b"a", b"b"), b"c", exit="break", losses=((4, 0.5),), seconds=1.0)
    assert Report.from_dict(copy.deepcopy(report.to_dict())) == report


def test_a_status_survives_json():
    import json

    device = Device("w", "phone-1", "phone", True, "working", lane=((0.0, 1.0, "work"),), earned=Amount(5, DPN))
    status = Status(
        "run-1", "n", "running", "local", "here", "depin", True, 1.0, iterations_done=5, iterations_total=10, loss=((1.0, 2.0),),
        devices=(device,), budget=Amount(7), projected=Figure(Amount(9), Tag.ESTIMATED), signatures=("s",), notices=("n",),
    )  # fmt: skip
    assert Status.from_dict(json.loads(json.dumps(status.to_dict()))) == status
    assert status.fraction == 0.5
    assert not status.ended
