"""Simulated links: never faster than their rate, in order, deterministic."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.network.shaping import BURST_S, MESSAGE_BYTES, Bucket, Link, size_of, take

MBIT = 1e6 / 8


@dataclass
class FakeTime:
    """A clock that only its own sleep moves."""

    now_s: float = 100.0
    slept_s: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def test_large_transfer_takes_its_size_over_the_rate():
    _, wait_s = take(Bucket.of_mbit(8.0), 0.0, 10_000_000)
    assert wait_s == pytest.approx(10.0 - BURST_S)


def test_small_message_on_an_idle_link_passes_at_once():
    assert take(Bucket.of_mbit(8.0), 0.0, 1000)[1] == 0.0


def test_unlimited_direction_never_waits():
    bucket = Bucket.of_mbit(0.0)
    assert take(bucket, 0.0, 10**12) == (bucket, 0.0)


def test_second_transfer_queues_behind_the_first():
    bucket, first_s = take(Bucket.of_mbit(8.0), 0.0, 1_000_000)
    bucket, second_s = take(bucket, 0.0, 1_000_000)
    assert second_s == pytest.approx(first_s + 1.0)


def test_a_clock_that_steps_back_gives_nothing_away():
    bucket, _ = take(Bucket.of_mbit(8.0), 10.0, 1_000_000)
    _, wait_s = take(bucket, 5.0, 1000)
    assert wait_s > 0.9


@given(
    mbit=st.floats(0.1, 1000),
    transfers=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 20_000_000)), min_size=1, max_size=30),
)
def test_no_history_beats_the_rate(mbit, transfers):
    bucket, now_s, sent, last_end = Bucket.of_mbit(mbit), 0.0, 0, 0.0
    for pause_s, size in transfers:
        now_s += pause_s
        bucket, wait_s = take(bucket, now_s, size)
        sent += size
        end = now_s + wait_s
        if size:
            assert end >= last_end - 1e-6  # in order
            last_end = max(last_end, end)
        assert sent <= mbit * MBIT * (end + BURST_S) + 1e-3


def test_link_waits_latency_once_an_exchange_and_counts_bytes():
    time = FakeTime()
    link = Link(8.0, 80.0, 0.04, clock=time, sleep=time.sleep)

    async def exchange():
        await link.up(1_000_000)
        await link.down(1_000_000)

    asyncio.run(exchange())
    assert time.slept_s == [pytest.approx(1.0 - BURST_S + 0.04), pytest.approx(0.1 - BURST_S)]
    assert (link.bytes_up, link.bytes_down) == (1_000_000, 1_000_000)


def test_link_without_limits_never_sleeps():
    time = FakeTime()
    link = Link(0.0, 0.0, 0.0, clock=time, sleep=time.sleep)
    asyncio.run(link.up(10**9))
    assert time.slept_s == []


def test_size_counts_payloads_at_any_depth():
    assert size_of({}) == MESSAGE_BYTES
    assert size_of({"data": b"x" * 1000, "logs": (b"y" * 10, b"z" * 5)}) == MESSAGE_BYTES + 1000 + 15 + len("data") + len("logs")
