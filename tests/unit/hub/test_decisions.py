"""The pure parts: units, rounds, deadlines, curve, devices, the gang's meeting."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.errors import HubError
from depin_nb.core.lease import EntrySpec, StrategyConfig, Unit
from depin_nb.hub.leases.entry import Entry, Result
from depin_nb.hub.leases.gang import GangCall
from depin_nb.hub.leases.members import MAX_REJECTED, Tally, drawn, member_of
from depin_nb.hub.leases.rounds import (
    DEADLINE_MIN_S,
    Pace,
    ahead,
    fastest,
    holds_up,
    lease_steps,
    quorum_s,
    solo_length,
    worth_doubling,
)
from depin_nb.hub.run import Curve
from depin_nb.training.allreduce import decode_grads, encode_grads

from .fleet import LOCAL, SOLO, SYNC


def entry(total: int | None = None) -> Entry:
    return Entry("r", 1, EntrySpec("p", (), LOCAL, total, 0, 1, 0.1, 1), 0)


def units(*indices: int) -> list[Unit]:
    return [Unit(i, b"", 1) for i in indices]


@given(st.lists(st.integers(0, 40), max_size=60), st.data())
def test_no_unit_is_lost_or_doubled_in_the_queue(fed: list[int], data: st.DataObject):
    queue, out = entry(), []
    queue.feed(units(*fed), False)
    for _ in range(10):
        count = data.draw(st.integers(1, 9))
        indices = queue.peek(count, contiguous=data.draw(st.booleans()))
        out.append(queue.take(indices))
        if data.draw(st.booleans()):
            queue.put_back(out.pop())
    queue.feed(units(*fed), True)  # sent again: nothing new
    held = [u.index for taken in out for u in taken] + queue.peek(100, contiguous=False)
    assert sorted(held) == sorted(set(fed))


def test_a_contiguous_span_stops_at_a_gap():
    queue = entry()
    queue.feed(units(0, 1, 2, 5, 6), False)
    assert queue.peek(9, contiguous=True) == [0, 1, 2]
    assert queue.peek(9, contiguous=False, at_most=5) == [0, 1, 2, 5]
    assert queue.peek(9, contiguous=True, among={5, 6}) == [5, 6]
    queue.cut_off(5)
    assert queue.peek(9, contiguous=False) == [0, 1, 2, 5]
    queue.put_back(units(6))
    assert queue.open_units == 4
    assert queue.want(100) == 0


def test_results_have_no_gaps_and_no_iteration_merges_twice():
    queue = entry()
    queue.add_merged([3, 4], [Result(3, (b"3", b"4"), b"", "", 1)])
    assert queue.results(0) == ([], False)
    queue.add_merged([0, 1, 2], [Result(0, (b"0", b"1", b"2"), b"", "", 2)])
    assert [r.first for r in queue.results(0)[0]] == [0, 3]
    assert [r.first for r in queue.results(3)[0]] == [3]
    with pytest.raises(HubError, match="twice"):
        queue.add_merged([2], [])


def test_want_is_bounded_by_the_total():
    queue = entry(total=10)
    assert queue.want(100) == 10
    queue.feed(units(*range(8)), False)
    assert queue.want(100) == 2
    assert queue.want(3) == 0


def test_solo_leases_grow_to_a_second():
    assert solo_length(1, None) == 2
    assert solo_length(2, 1000.0) == 4
    assert solo_length(400, 1000.0) == 512
    assert solo_length(8, 5.0) == 5
    assert solo_length(8, 0.1) == 1
    assert solo_length(400, 100.0, overhead_s=0.01) == 100
    assert solo_length(400, 100.0, overhead_s=0.04) == 200
    assert solo_length(400, 100.0, overhead_s=0.1) == 300  # no longer than three seconds for so little
    assert solo_length(400, 10.0, overhead_s=2.0) == 200  # a tenth
    assert solo_length(400, 1.0, overhead_s=20.0) == 60
    assert ahead("solo", SOLO, 1, 4, 100.0) == 300
    assert ahead("gang", SYNC, 3, 0, None) == 24


@given(st.integers(1, 1000), st.floats(1e-3, 1e4), st.none() | st.floats(0, 100), st.integers(0, 10**9))
def test_first_deadlines_are_generous(count: int, rate: float, overhead_s: float | None, moved: int):
    deadline_s = Pace(count, rate, overhead_s, moved).deadline_s()
    assert deadline_s >= max(DEADLINE_MIN_S, 5 * count / rate)


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=16), st.integers(1, 1000), st.floats(1e-3, 1e3))
def test_later_deadlines_follow_the_devices_own_history(ratios: list[float], count: int, rate: float):
    pace = Pace(count, rate, 0.5, 10**9, tuple(ratios))
    middle = sorted(ratios)[len(ratios) // 2]
    assert pace.late_s <= pace.deadline_s()
    assert pace.late_s > min(middle, sorted(ratios)[(len(ratios) - 1) // 2]) * pace.expected_s
    slower = Pace(count, rate, 0.5, 10**9, tuple(2 * r for r in ratios))
    assert slower.late_s == pytest.approx(2 * pace.late_s)


def test_a_regular_device_is_late_sooner_than_an_erratic_one():
    regular, erratic = ((1.0, 1.0, 1.1, 0.9), (1.0, 0.3, 2.5, 0.8))
    assert Pace(100, 1.0, 0.0, 0, regular).late_s < 200 < Pace(100, 1.0, 0.0, 0, erratic).late_s
    assert Pace(100, 1.0, 0.0, 0, regular[:2]).late_s == float("inf")


def test_what_is_worth_doing_twice():
    pace = Pace(100, 10.0, 0.0, 0, (1.0, 1.0, 1.0))
    assert worth_doubling(0.1, pace, 1e9, silent=True, at_end=False)
    assert not worth_doubling(1.0, pace, 2.0, silent=False, at_end=False), "in time"
    assert worth_doubling(1.0, pace, 2.0, silent=False, at_end=True), "nothing else is to be done"
    assert not worth_doubling(1.0, pace, 8.0, silent=False, at_end=True), "it gains too little"
    assert worth_doubling(40.0, pace, 10.0, silent=False, at_end=False), "late"
    assert not worth_doubling(40.0, Pace(100, 10.0, None, 0), 1.0, silent=False, at_end=True), "its first lease"


def test_who_holds_a_round_up():
    known, first = Pace(100, 10.0, 0.0, 0, (1.0,) * 4), Pace(100, 10.0, 60.0, 0)
    assert not holds_up(0.0, 9.0, known, 10.0), "it is nearly done"
    assert not holds_up(0.5, 11.0, known, 10.0)
    assert holds_up(0.0, 5.0, known, 10.0), "half of it is still to be done"
    assert holds_up(0.0, 13.0, known, 10.0), "late"
    assert holds_up(2.6, 10.0, known, 10.0), "they have waited long enough"
    assert not holds_up(0.9, 0.3, Pace(1, 10.0, 0.1, 0, (1.0,)), 0.2), "noise"
    assert not holds_up(9.0, 99.0, first, 10.0), "it opens the program"
    assert holds_up(11.0, 99.0, first, 10.0)


def test_a_quorum_is_there_with_the_report_that_makes_it():
    came = [(3.0, 10), (1.0, 10), (2.0, 5)]
    assert quorum_s(came, 0, 0.5) == 2.0
    assert quorum_s(came, 25, 0.5) == 3.0
    assert quorum_s(came, 26, 0.5) is None
    assert quorum_s([], 0, 0.5) is None


def test_slow_iterations_make_shorter_leases_and_thin_links_longer_ones():
    config = StrategyConfig(name="local", solo=False, inner_steps=50, lease_s=30.0)
    assert lease_steps(config, [10.0, 10.0], 0.0) == 50, "at most"
    assert lease_steps(config, [0.5, 1.5], 0.0) == 30, "a second each, on the average"
    assert lease_steps(config, [0.5, 1.5], 4.0) == 40, "4 s of transfer are a tenth of 40"
    assert lease_steps(config, [0.5, 1.5], 40.0) == 50
    assert lease_steps(config, [0.001], 0.0) == 1
    assert lease_steps(replace(config, lease_s=0.0), [0.001], 0.0) == 50, "as asked"
    assert lease_steps(config, [], 0.0) == 50


def test_the_fastest():
    assert fastest({"b": 2.0, "a": 2.0, "c": 1.0}) == "a"


@pytest.mark.parametrize("speed", [None, "fast", float("nan"), -1, True, 1e30])
def test_odd_facts_are_not_believed(speed):
    member = member_of("tcp://x", "phone", "w", {"speed": speed, "name": 5}, "s", 0.0)
    assert 0 < member.rate("r", 0.1) < 1e9
    assert member.worker_id == "5"
    member.measured("r", 10, 2.0, 3.0)
    assert (member.rate("r", 0.1), member.overheads["r"]) == (5.0, 1.0)
    member.measured("r", 10, 0.0, 0.0)
    assert member.rate("r", 0.1) == 5.0
    member.measured("r", 10, 50.0, 2.0)  # it can't have worked longer than the lease was out
    assert (member.rate("r", 0.1), member.overheads["r"]) == (5.0, 0.0)  # the second counts alone
    member.measured("r", 10, 1.0, 2.0)
    assert (member.rate("r", 0.1), member.overheads["r"]) == (7.5, 0.5)
    member.rejected["r"] = MAX_REJECTED
    assert member.barred("r")
    assert not member.barred("other")


def test_a_device_shows_its_last_minute():
    tally = Tally("w", "phone", True, "a", "")
    tally.began(0.0)
    tally.ended(10.0, 8.0)
    tally.accepted(10.0, 0.0, 4, 8, 100)
    tally.began(15.0)
    (device,) = drawn([tally], 65.0)
    assert device.lane == ((5.0, 8.0, "work"), (8.0, 10.0, "send"), (10.0, 15.0, "wait"), (15.0, 65.0, "work"))
    assert (device.state, device.samples_per_s) == ("working", 0.8)
    tally.ended(66.0, 0.0, lost=True)
    assert drawn([tally], 66.0)[0].lane[-1] == (15.0, 66.0, "lost")


@given(st.lists(st.floats(-1e6, 1e6), max_size=1000))
def test_the_curve_is_short_and_ends_with_the_last_loss(losses: list[float]):
    curve = Curve()
    for i, loss in enumerate(losses):
        curve.add(float(i), loss)
    shown = curve.decimated()
    assert len(shown) <= 200
    assert list(shown) == sorted(shown)
    if losses:
        assert shown[-1][0] == len(losses) - 1
        assert shown[-1][1] == float(f"{losses[-1]:.6g}")


def grads(value: float, size: int = 3) -> bytes:
    return encode_grads([torch.full((size,), value, dtype=torch.float64), None])


def meet(work):
    with ThreadPoolExecutor(1) as pool:

        async def main():
            return await asyncio.wait_for(work(lambda size: GangCall("g", size, pool, 1 << 20)), 30)

        return asyncio.run(main())


def test_all_ranks_get_the_same_weighted_mean():
    async def work(make):
        gang = make(3)
        answers = await asyncio.gather(*(gang.reduce(r, 0, w, grads(float(r))) for r, w in enumerate((1, 1, 2))))
        assert len(set(answers)) == 1
        mean = decode_grads(answers[0], max_bytes=1 << 20)[0]
        assert torch.equal(mean, torch.full((3,), 1.25, dtype=torch.float64))

    meet(work)


def test_a_step_does_not_wait_for_ranks_that_are_done():
    async def work(make):
        gang = make(2)
        await asyncio.gather(gang.reduce(0, 0, 1, grads(1)), gang.reduce(1, 0, 1, grads(2)))
        waiting = asyncio.ensure_future(gang.reduce(0, 1, 1, grads(5)))
        gang.leave(1)
        assert torch.equal(decode_grads(await waiting, max_bytes=1 << 20)[0], torch.full((3,), 5.0, dtype=torch.float64))

    meet(work)


@pytest.mark.parametrize(
    "second", [(1, 5, 1, grads(1)), (1, 0, 1, b"junk"), (1, 0, float("nan"), grads(1)), (1, 0, 1, grads(1, 4)), (7, 0, 1, grads(1))]
)
def test_whatever_is_wrong_lets_all_ranks_go(second):
    async def work(make):
        gang = make(2)
        answers = await asyncio.gather(gang.reduce(0, 0, 1, grads(1)), gang.reduce(*second))
        assert answers == [None, None]
        assert gang.aborted
        assert await gang.reduce(0, 1, 1, grads(1)) is None

    meet(work)


def test_an_abort_frees_those_who_wait():
    async def work(make):
        gang = make(2)
        waiting = asyncio.ensure_future(gang.reduce(0, 0, 1, grads(1)))
        gang.abort("a rank is gone")
        assert await waiting is None
        assert gang.aborted == "a rank is gone"

    meet(work)


def test_who_was_too_late_gets_twice_the_time_until_it_is_measured():
    member = member_of("tcp://a", "phone", "w", {"speed": 0.5}, "s", 0.0)
    assert member.rate("r", 0.1) == 5.0
    member.overdue("r", 0.1)
    member.overdue("r", 0.1)
    assert member.rate("r", 0.1) == 1.25
    member.measured("r", 10, 4.0, 4.0)
    assert member.rate("r", 0.1) == 2.5
