"""What has to hold of any cell, as functions that raise AssertionError where it doesn't. For the catalogue and for random programs."""

import contextlib

from comparing import NOT_THE_CELLS, compare, made_on_a_worker, masked, skeleton
from inprocess import leased, local

from depin_nb.core.errors import LoopError, RefusedLoop, ShipError
from depin_nb.loop.source import Remote


def exact(here, there, ignored=frozenset()):
    """Everything that a leased run left, showed and raised is what the local one did."""
    ours, text, generators, error = here
    theirs, leased_text, leased_generators, leased_error = there[:4]
    if isinstance(leased_error, LoopError) and error is None:
        raise AssertionError(f"{type(leased_error).__name__}: {leased_error}") from leased_error
    assert repr(leased_error) == repr(error)
    assert leased_text == text
    assert there.errors == here.errors
    assert there.warned == here.warned, f"warned: {there.warned} is not {here.warned}"
    compare(ours, theirs, ignored)
    assert leased_generators == generators, "the generators stand elsewhere"
    assert not [n for n in theirs if n.startswith("__depin")]


def same_structure(here, there, ignored=frozenset()):
    """The lines (their numbers masked), names, lengths and shapes are the local ones, and no index was merged twice."""
    ours, text, _, error = here
    theirs, leased_text, _, leased_error = there[:4]
    if isinstance(leased_error, LoopError) and error is None:
        raise AssertionError(f"{type(leased_error).__name__}: {leased_error}") from leased_error
    assert masked(repr(leased_error)) == masked(repr(error))
    assert [masked(line) for line in leased_text.splitlines()] == [masked(line) for line in text.splitlines()]
    ignored = {*ignored, *NOT_THE_CELLS}
    names = set(ours) - ignored
    assert names == set(theirs) - ignored
    for name in names:
        if isinstance(theirs[name], Remote):
            assert made_on_a_worker(ours[name]), f"{name}: {ours[name]!r} here, {theirs[name]!r} leased"
            continue
        assert skeleton(theirs[name]) == skeleton(ours[name]), f"{name}: {ours[name]!r} here, {theirs[name]!r} leased"


def refused(there):
    """Whether the loop was refused; then nothing may have been leased."""
    error, hub = there[3], there[4]
    if not isinstance(error, (RefusedLoop, ShipError)):
        return False
    assert hub.entries == 0, f"refused after {hub.entries} entries: {error}"
    return True


def one_worker(setup, code, *, lose_after=None):
    """Whether the program was accepted; with one worker, lost once or not, it is exact."""
    here = local(setup, code)
    there = leased(setup, code, lose_after=lose_after)
    if refused(there):
        return False
    exact(here, there)
    return True


def three_workers(setup, code, counted, *, by_value=False, lose_after=None):
    """The reason why one worker did it, or None. Then lines and structure are the local ones, and so are the expressions `counted`."""
    here = local(setup, code)
    there = leased(setup, code, workers=3, lose_after=lose_after)
    if refused(there):
        return "refused"
    hub = there[4]
    assert hub.plans, f"no loop was entered: {there[3]!r}\n{code}"
    if all(plan.solo_reason for plan in hub.plans):
        exact(here, there)
        return hub.plans[0].solo_reason
    if by_value:
        assert not isinstance(there[3], LoopError), there[3]
        return None
    same_structure(here, there)
    for expression in counted:
        with contextlib.suppress(NameError):  # a program in a function
            ours, theirs = (eval(expression, dict(ran[0])) for ran in (here, there))
            assert ours == theirs, f"{expression}: {ours!r} here, {theirs!r} leased"
    return None
