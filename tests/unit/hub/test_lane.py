"""Lanes as they are drawn."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from depin_nb.hub.leases.members import LANE_BINS, coarse

SPANS = st.lists(st.tuples(st.floats(0.001, 2), st.sampled_from(["work", "send", "wait", "lost"])), min_size=1, max_size=400)


@given(SPANS)
def test_a_lane_covers_its_time_in_order_and_is_short(pieces):
    at, spans = 0.0, []
    for seconds, state in pieces:
        spans.append((at, at + seconds, state))
        at += seconds
    lane = coarse(spans)
    assert len(lane) <= LANE_BINS
    assert abs(lane[0][0] - spans[0][0]) < 1e-2
    assert abs(lane[-1][1] - at) < 0.2
    for (_, b, s), (a, _, t) in pairwise(lane):
        assert b <= a + 2e-3
        assert s != t
    if any(s == "lost" for *_, s in spans):
        assert any(s == "lost" for *_, s in lane)


def test_nothing_stays_nothing():
    assert coarse([]) == ()
