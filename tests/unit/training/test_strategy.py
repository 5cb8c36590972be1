"""Which strategy, and how the units of a round are dealt out."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.errors import UsageError
from depin_nb.core.lease import StrategyConfig
from depin_nb.training.strategy import choose, cut, cut_gang


def chosen(
    requested: str | None = None,
    workers: int = 4,
    backend: str = "depin",
    total: int | None = 1000,
    solo: str | None = None,
    **options: object,
):
    return choose(requested, workers=workers, backend=backend, total=total, solo_reason=solo, options=options)


def test_one_worker_is_exact() -> None:
    for requested in (None, "auto", "sync", "local", "sparse"):
        config, reason = chosen(requested, workers=1, bits=4)
        assert (config.name, config.solo, config.bits) == ("sync", True, 32)
        assert "one worker" in reason


def test_a_loop_that_cannot_be_spread_stays_on_one_worker_and_says_why() -> None:
    config, reason = chosen("local", solo="`hidden` goes from one iteration to the next")
    assert config.solo
    assert "`hidden` goes" in reason


def test_fast_links_average_gradients() -> None:
    config, reason = chosen(backend="local", workers=2)
    assert (config.name, config.solo, config.bits) == ("sync", False, 32)
    assert "2 batches" in reason
    assert chosen("sync")[0] == chosen(backend="local")[0]


def test_home_links_take_local_steps() -> None:
    config, reason = chosen()
    assert config == StrategyConfig(
        "local", solo=False, inner_steps=50, outer_lr=1.0, outer_momentum=0.3, bits=4, error_feedback=True, down_bits=4, lease_s=30.0
    )
    assert "4-bit" in reason


@pytest.mark.parametrize(
    ("total", "workers", "steps"), [(45, 4, 3), (1000, 4, 50), (10**6, 4, 50), (3, 4, 1), (0, 4, 1), (None, 4, 10), (200, 2, 33)]
)
def test_an_entry_has_some_merges(total: int | None, workers: int, steps: int) -> None:
    assert chosen(total=total, workers=workers)[0].inner_steps == steps


def test_options_are_taken_and_checked() -> None:
    config, reason = chosen(inner_steps=7, bits=32, outer_momentum=0.1, outer_lr=None)
    assert (config.inner_steps, config.bits, config.outer_momentum, config.outer_lr) == (7, 32, 0.1, 1.0)
    assert "whole values" in reason
    bad = {"inner_steps": 0, "bits": 16, "outer_lr": 0, "outer_momentum": 1.0, "error_feedback": 1, "quorum": 0}
    for name, value in bad.items():
        with pytest.raises(UsageError, match=name):
            chosen(**{name: value})
    for value in (True, float("nan"), "1"):
        with pytest.raises(UsageError):
            chosen(outer_lr=value)
    with pytest.raises(UsageError, match="did you mean inner_steps"):
        chosen(inner_step=3)
    with pytest.raises(UsageError, match="bits"):
        chosen("sync", bits=4)


def test_one_bit_merges_three_times_as_often() -> None:
    config, reason = chosen(bits=1)
    assert config == StrategyConfig(
        "local", solo=False, inner_steps=16, outer_lr=1.25, outer_momentum=0.0, bits=1, down_bits=1, lease_s=30.0
    )
    assert "1,228 changes of each 4,096" in reason
    assert "about 9 merges an entry, at most 16 iterations" in reason
    assert chosen(bits=1, inner_steps=30, outer_lr=1.0)[0].inner_steps == 30
    assert chosen(bits=1, outer_lr=1.0)[0].outer_lr == 1.0
    assert chosen(bits=1, total=3)[0].inner_steps == 1


def test_sparse_keeps_the_largest_changes() -> None:
    config, reason = chosen("sparse", inner_steps=30)
    assert config == StrategyConfig("sparse", solo=False, inner_steps=30, outer_momentum=0.0, bits=2, down_bits=4)
    assert "64 changes of each 4,096" in reason
    with pytest.raises(UsageError, match="bits"):
        chosen("sparse", bits=4)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean local"):
        chosen("locl")
    with pytest.raises(UsageError) as caught:
        chosen("zzz")
    assert "did you mean" not in str(caught.value)
    assert "auto, sync, local, sparse" in str(caught.value)


speeds = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0.01, 100), max_size=8)


@given(open_units=st.integers(-3, 500), speeds=speeds, inner_steps=st.integers(1, 60))
def test_cut_is_bounded_complete_and_balanced(open_units: int, speeds: dict[str, float], inner_steps: int) -> None:
    counts = cut(open_units, speeds, StrategyConfig("local", solo=False, inner_steps=inner_steps))
    assert sum(counts.values()) == min(max(0, open_units), inner_steps * len(speeds))
    assert set(counts) <= set(speeds)
    assert all(n >= 1 for n in counts.values())
    assert len(counts) == min(len(speeds), max(0, open_units))
    if len(counts) < len(speeds) and counts:
        assert min(speeds[w] for w in counts) >= max(s for w, s in speeds.items() if w not in counts)
    # balanced: no worker with more than one unit would be relieved by giving its last one to another
    for worker, n in counts.items():
        if n > 1:
            assert all(n / speeds[worker] <= (m + 1) / speeds[w] * (1 + 1e-9) for w, m in counts.items())
    backwards = dict(reversed(speeds.items()))
    assert cut(open_units, backwards, StrategyConfig(inner_steps=inner_steps)) == counts


def test_cut_follows_speed() -> None:
    config = StrategyConfig("local", solo=False, inner_steps=27)
    assert cut(1000, {"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.2}, config) == {"a": 40, "b": 40, "c": 20, "d": 8}
    assert cut(10, {"a": float("nan"), "b": 0.0, "c": -1.0}, config) == {"a": 4, "b": 3, "c": 3}
    assert cut(10, {"a": 2.0, "b": 0.0}, config) == {"a": 5, "b": 5}
    assert cut(10, {}, config) == {}


@given(open_units=st.integers(-3, 300), workers=st.integers(0, 6), inner_steps=st.integers(1, 20), closed=st.booleans())
def test_gangs_take_turns(open_units: int, workers: int, inner_steps: int, closed: bool) -> None:
    parts = cut_gang(open_units, workers, StrategyConfig(solo=False, inner_steps=inner_steps), closed=closed)
    units = sorted(u for part in parts for u in part.units)
    span = len(units)
    assert units == list(range(span))
    assert span <= min(max(0, open_units), inner_steps * workers)
    assert [part.rank for part in parts] == list(range(len(parts)))
    for part in parts:
        assert len(part.units) == len(part.groups) == len(part.group_size) >= 1
        for unit, group, size in zip(part.units, part.groups, part.group_size, strict=True):
            assert (unit % workers, unit // workers) == (part.rank, group)
            assert size == sum(group in other.groups for other in parts)
            assert size == workers or (closed and group == (span - 1) // workers)
    if closed and workers:
        assert span == min(max(0, open_units), inner_steps * workers)


def test_a_strategy_is_chosen_without_torch() -> None:
    code = "import sys, depin_nb.training.strategy, depin_nb.training.lifecycle; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "False"
