from fractions import Fraction

import pytest
from book import BOOK

from depin_nb.core.amount import DPN, USD, Amount, Currency, Tag
from depin_nb.core.errors import AmountError, ConfigError
from depin_nb.metering.price import from_dict, load


def test_the_catalog_prices_every_profile_and_dates_itself():
    book = BOOK
    assert {"local", "phone", "laptop", "single-board"} <= set(book.devices)
    assert book.dated.startswith("2026-11")
    assert not book.price("local").per_tflop
    assert book.price("local").text() == "free"
    assert book.price("phone").simulated
    assert book.price("phone").text() == "0.15 DPN/TFLOP (simulated)"
    assert "simulated" in book.text()
    assert book.quote().tag is Tag.QUOTED
    assert {"AWS", "GCP", "Azure", "Akash", "Vast"} <= {instance.provider for instance in book.instances}


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match="toaster") as caught:
        load().price("toaster")
    assert "phone" in caught.value.hint


def test_a_missing_catalog_is_a_config_error():
    with pytest.raises(ConfigError, match="no-such"):
        load("no-such.json")


def test_dollars_are_rounded_up_and_tokens_bought_rounded_down():
    book = BOOK  # 1 DPN = 1,000 micro-dollars, so 1,000 base units make one
    assert book.to_usd(Amount(1_000, DPN)) == Amount(1, USD)
    assert book.to_usd(Amount(1_001, DPN)) == Amount(2, USD)
    assert book.to_usd(Amount(0, DPN)) == Amount(0, USD)
    assert book.to_usd(Amount(7, USD)) == Amount(7, USD)
    assert book.to_dpn(Amount(3, USD)) == Amount(3_000, DPN)
    assert book.to_dpn(Amount(3, DPN)) == Amount(3, DPN)
    for units in (0, 1, 999, 12_345_678):
        assert book.to_usd(book.to_dpn(Amount(units, USD))) <= Amount(units, USD)


def test_other_currencies_are_refused():
    with pytest.raises(AmountError):
        load().to_usd(Amount(1, Currency("EUR", 2)))


def test_a_catalog_with_a_negative_price_is_refused():
    data = {
        "version": "t",
        "dated": "t",
        "rate": {"usd_micro_per_dpn": 1, "source": "t"},
        "devices": {"phone": {"dpn_units_per_tflop": -1, "simulated": True, "source": "t"}},
        "instances": [],
        "instances_source": "t",
        "speed": {"share_of_peak": "0.5", "min_step_s": 0.1, "source": "t"},
    }
    with pytest.raises(ValueError, match="negative"):
        from_dict(data)
    data["devices"]["phone"]["dpn_units_per_tflop"] = 1
    assert from_dict(data).speed.share_of_peak == Fraction(1, 2)
