"""What is shown of a status: fractions within bounds, honest words, every figure tagged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.amount import DPN, Amount, Figure, Tag
from depin_nb.core.status import ACTIVE, ENDED
from depin_nb.jupyter.curve import MOST_POINTS, curve
from depin_nb.jupyter.figures import duration, percent, rate, short, size
from depin_nb.jupyter.view import LABELS, MOST_HEADLINE, SPAN_STATES, budget_bar, spans, view

TAGS = {t.value for t in Tag}
losses = st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True, width=32)), max_size=300)


@settings(deadline=None)
@given(losses)
def test_a_curve_stays_in_its_frame_whatever_the_losses(points: list[tuple[float, float]]) -> None:
    points.sort(key=lambda p: p[0])
    drawn = curve(points)
    finite = [p for p in points if math.isfinite(p[1])]
    if not finite:
        assert drawn is None
        return
    assert drawn is not None
    assert len(drawn.points) == min(len(finite), MOST_POINTS)
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in drawn.points)
    assert drawn.skipped == len(points) - len(finite)
    assert all(label for _, label in drawn.y_ticks)


def test_a_curve_keeps_its_ends_and_turns_logarithmic_over_a_wide_range() -> None:
    linear = curve([(float(i), 2.0 - i / 1000) for i in range(1000)])
    assert linear is not None
    assert linear.points[0][0] == 0
    assert linear.points[-1][0] == 1
    assert not linear.log
    wide = curve([(float(i), 10.0 ** (1 - i / 100)) for i in range(400)])
    assert wide is not None
    assert wide.log
    assert [y for _, y in wide.points] == sorted((y for _, y in wide.points), reverse=True)


lanes = st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200), st.sampled_from((*SPAN_STATES, "nonsense"))), max_size=60)


@settings(deadline=None)
@given(lanes, st.floats(0, 200), st.integers(1, 50))
def test_spans_are_bounded_and_known(lane: list[tuple[float, float, str]], elapsed_s: float, most: int) -> None:
    shown = spans(lane, elapsed_s, most)
    assert len(shown) <= most
    assert all(0 <= a < b <= 1 and state in SPAN_STATES for a, b, state in shown)


def test_spans_join_neighbours_and_show_the_last_minute() -> None:
    assert spans([(0, 10, "work"), (10, 20, "work"), (20, 30, "wait")], 120, 9) == ()
    assert spans([(60, 75, "work"), (75, 90, "work"), (90, 120, "send")], 120, 9) == ((0, 0.5, "work"), (0.5, 1, "send"))


def test_many_spans_are_shown_coarsely_over_the_whole_window() -> None:
    fine = [(i / 4, i / 4 + 0.2, "work" if i < 120 else "lost") for i in range(240)] + [
        (i / 4 + 0.2, i / 4 + 0.25, "wait") for i in range(240)
    ]
    assert spans(sorted(fine), 60, 12) == ((0, 0.5, "work"), (0.5, 1, "lost"))


def test_every_figure_has_a_tag(sample) -> None:
    v = view(sample())
    for stat in (*v.times, *v.learning, *v.money, *v.tokens):
        assert stat.tag in TAGS, stat
    assert [s.tag for s in v.money] == ["metered", "estimated", "estimated"]
    assert [s.tag for s in v.tokens] == ["metered", "settled"]


def test_the_headline_says_loop_workers_strategy_and_why(sample) -> None:
    status = sample(where="fit(), line 4: for x, y in loader -> 45 iterations on 3 workers", strategy="sync: fast links", name="digits")
    assert view(status).headline == "fit(), line 4: for x, y in loader -> 45 iterations on 3 workers, sync: fast links"
    assert view(status).title == "digits"
    assert view(replace(status, name="for x, y in loader")).title == ""  # the headline has it
    assert view(replace(status, strategy="")).headline == status.where
    assert len(view(replace(status, strategy="s" * 900)).headline) == MOST_HEADLINE


def test_a_long_reason_is_told_in_whole_clauses_and_whole_in_the_tooltip(sample) -> None:
    reason = ", ".join(f"clause number {i}" for i in range(40))
    shown = view(sample(where="fit(), line 4: for x, y in loader -> 45 iterations on 3 workers", strategy=f"local: {reason}"))
    assert len(shown.headline) <= MOST_HEADLINE
    assert shown.headline.endswith(" …")
    assert shown.headline.removesuffix(" …").rsplit(", ", 1)[1] in reason.split(", ")
    assert shown.plan.endswith("clause number 39")


def test_a_run_that_ended_tells_its_average_speed(sample) -> None:
    v = view(sample(state="finished", samples_per_s=0.0, samples_done=1840, elapsed_s=92.0))
    assert [s.value for s in v.learning if s.label == "Samples/s"] == ["20"]
    assert [s.tag for s in view(sample(state="finished", loss=())).learning] == ["none", Tag.METERED.value]


def test_every_state_has_words_and_unknown_ones_pass(sample) -> None:
    assert set(LABELS) == {*ACTIVE, *ENDED}
    assert view(sample(state="paused")).label == "paused"
    assert view(replace(sample(), state="dreaming")).label == "dreaming"
    assert view(sample()).active
    assert not view(sample(state="budget")).active


def test_an_ended_run_tells_no_estimates(sample) -> None:
    v = view(sample(state="finished"))
    assert {s.tag for s in (*v.times, *v.money)} == {"metered"}
    assert v.percent == "100 %"


def test_percent_is_100_only_when_all_is_done() -> None:
    assert [percent(f) for f in (None, 0.0, 0.999999, 1.0)] == ["", "0 %", "99 %", "100 %"]


@pytest.mark.parametrize(("spent", "reserved"), [(0, 0), (61_200, 8_000), (99_000, 50_000), (200_000, 10)])
def test_the_budget_bar_never_leaves_its_frame(sample, spent: int, reserved: int) -> None:
    bar = budget_bar(sample(spent=Figure(Amount(spent), Tag.METERED), reserved=Amount(reserved)))
    assert bar is not None
    assert 0 <= bar.spent <= bar.spent + bar.reserved <= 1
    assert bar.warn == (spent >= 80_000)


def test_a_budget_of_nothing_or_in_another_currency(sample) -> None:
    assert budget_bar(sample(budget=None)) is None
    assert budget_bar(sample(budget=Amount(5, DPN))) is None
    empty = budget_bar(sample(budget=Amount(0)))
    assert empty is not None
    assert empty.spent == 1


def test_only_the_newest_notices_are_shown_and_the_rest_counted(sample) -> None:
    v = view(sample(notices=tuple(f"note {i}" for i in range(9))), notices=["mine"])
    assert v.notices[0] == "4 earlier notices"
    assert v.notices[-1] == "mine"


def test_figures_as_people_read_them() -> None:
    assert [duration(s) for s in (0, 7.4, 62, 3723, None, math.nan)] == ["0:00", "0:07", "1:02", "1:02:03", "-", "-"]
    assert [size(n) for n in (0, 999, 1000, 1_240_000, 3_000_000_000_000)] == ["0 B", "999 B", "1 kB", "1.24 MB", "3 TB"]
    assert [rate(r) for r in (0, 1.2345, 1204.4, math.inf)] == ["0", "1.23", "1,204", "0"]
    assert short("a" * 88) == "aaaaaa…aaaa"
    assert short("run-7f3c") == "run-7f3c"
