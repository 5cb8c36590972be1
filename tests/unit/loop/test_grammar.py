"""Random cells (grammar.py): the split shows and leaves what one process would, or refuses before anything runs.

`DEPIN_EXAMPLES=2000 pytest tests/unit/loop/test_grammar.py` searches longer, each time elsewhere; what it finds is kept in cells_found.py.
"""

import os
import random

import pytest
from grammar import program
from holding import one_worker, three_workers
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st
from vocabulary import COUNTED, SETUP

LONG = int(os.environ.get("DEPIN_EXAMPLES", "0"))
SEEDS = range(25)
searching = settings(
    derandomize=not LONG,
    deadline=None,
    max_examples=LONG or 25,
    database=None,
    phases=list(Phase) if LONG else [Phase.generate],  # shrinking takes minutes: search longer to get a small program
    suppress_health_check=list(HealthCheck),
)
rngs = st.randoms(use_true_random=False)


@searching
@given(rngs)
def test_one_worker_is_exact(rng):
    made = program(rng)
    event("accepted" if one_worker(SETUP, made.code) else "refused")


@searching
@given(rngs, st.integers(0, 5))
def test_a_lost_worker_changes_nothing(rng, lease):
    made = program(rng)
    event("accepted" if one_worker(SETUP, made.code, lose_after=lease) else "refused")


@searching
@given(rngs, st.none() | st.integers(0, 6))
def test_three_workers_keep_lines_and_counts(rng, lease):
    made = program(rng, by_value=False)
    reason = three_workers(SETUP, made.code, COUNTED, lose_after=lease)
    event("several workers" if reason is None else "one worker")
    assume(reason != "refused")


@searching
@given(rngs, st.none() | st.integers(0, 6))
def test_three_workers_on_a_loop_that_follows_its_numbers(rng, lease):
    """Several workers may print other lines; but the halves never disagree, and what needs one worker is exact."""
    made = program(rng)
    three_workers(SETUP, made.code, COUNTED, by_value=made.by_value, lose_after=lease)


def test_nearly_all_are_accepted():
    accepted = [one_worker(SETUP, program(random.Random(seed)).code) for seed in SEEDS]
    assert sum(accepted) >= 0.9 * len(accepted)


def test_many_are_shared():
    """The analysis doesn't keep everything on one worker."""
    reasons = [three_workers(SETUP, program(random.Random(seed), by_value=False).code, COUNTED) for seed in SEEDS]
    assert reasons.count(None) >= 0.3 * len(reasons), reasons


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_choices_give_the_same_program(seed):
    assert program(random.Random(seed)) == program(random.Random(seed))
