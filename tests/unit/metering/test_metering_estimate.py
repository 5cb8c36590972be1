import pytest
from book import BOOK

from depin_nb.core.amount import DPN, USD, Amount, Tag
from depin_nb.metering.estimate import FleetDevice, Probe, duration_text, estimate, rent

PROBE = Probe(flops_per_iteration=10**9, seconds_per_iteration=0.01, iterations=1_000, merges=10, up_bytes=125_000, down_bytes=250_000)


def test_every_row_is_tagged_and_says_what_it_assumes():
    rows = estimate(PROBE, BOOK, fleet=[FleetDevice("phone", 0.5)])
    assert [row.kind for row in rows[:2]] == ["this machine", "fleet"]
    assert len(rows) == 2 + len(BOOK.instances)
    for row in rows:
        assert row.cost.tag is Tag.ESTIMATED
        assert row.assumption
        assert row.price_per_h is None or row.price_per_h.tag is Tag.QUOTED
        assert row.time_s > 0
        assert "estimated" in row.text()
        assert row.to_dict()["cost"]["currency"] == "USD"
    costs = [row.cost.amount.units for row in rows[2:]]
    assert costs == sorted(costs)
    assert "TFLOP/s sustained" in rows[2].assumption


def test_this_machine_takes_the_probes_time_and_costs_nothing():
    row = estimate(PROBE, BOOK)[0]
    assert row.time_s == pytest.approx(10.0)
    assert not row.cost.amount
    assert not row.simulated


def test_the_fleet_shares_work_by_speed_and_waits_for_the_slowest_link():
    fast = FleetDevice("laptop", 1.5)
    slow = FleetDevice("phone", 0.5, up_bits_per_s=1e6, down_bits_per_s=2e6, latency_s=0.1)
    row = estimate(PROBE, BOOK, fleet=[fast, slow])[1]
    assert row.simulated
    assert row.time_s == pytest.approx(10.0 / 2.0 + 10 * (1.0 + 1.0 + 0.2))
    # 1 TFLOP in all: three quarters at the laptop's 120,000, one at the phone's 150,000
    assert row.tokens.amount == Amount(90_000 + 37_500, DPN)
    assert row.cost.amount == BOOK.to_usd(row.tokens.amount)
    assert "simulated" in row.text()
    with pytest.raises(ValueError, match="speed"):
        estimate(PROBE, BOOK, fleet=[FleetDevice("phone", 0.0)])


def test_rent_follows_the_billing_rule():
    by_provider = {(i.provider, i.name): i for i in BOOK.instances}
    aws = by_provider["AWS", "m7g.large"]  # by the second, at least 60: $0.0816 an hour
    assert rent(aws, 1.0) == rent(aws, 60.0) == Amount(1_360, USD)
    assert rent(aws, 3600.0) == Amount(81_600, USD)
    azure = by_provider["Azure", "NC24ads_A100_v4 (A100)"]  # by the minute
    assert rent(azure, 61.0) == rent(azure, 120.0)


@pytest.mark.parametrize(("seconds", "text"), [(0.84, "0.8 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_read_well(seconds, text):
    assert duration_text(seconds) == text
