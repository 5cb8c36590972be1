"""The life of a lease: one table of legal transitions, and nothing else may change a lease's state."""

from __future__ import annotations

from enum import Enum

from depin_nb.core.errors import DepinError


class IllegalTransition(DepinError):
    """A lease was told something that its state doesn't allow. Fields: state (LeaseState), trigger (Trigger)."""

    default_hint = "An error of depin_nb's: the lease was left as it was. The run's journal (`depin runs`) holds its history."


class LeaseState(str, Enum):
    """Where a lease is. The values are what the journal keeps."""

    OPEN = "open"  # in the queue
    LEASED = "leased"  # lent to one worker
    SUBMITTED = "submitted"  # its report is here, not yet examined
    ACCEPTED = "accepted"  # the report is valid and waits for its round
    MERGED = "merged"  # part of a version of the state
    PAID = "paid"  # merged, and its work is settled
    DISCARDED = "discarded"  # valid work that isn't needed (beyond a `break`, or done twice): not merged, to be paid
    DISCARDED_PAID = "discarded_paid"  # the same, settled
    CANCELLED = "cancelled"  # no longer wanted and without a valid report: nothing is owed


class Trigger(str, Enum):
    """What happens to a lease."""

    LEASE = "lease"  # given to a worker
    SUBMIT = "submit"  # the worker that holds it handed in a report
    ACCEPT = "accept"  # the report is valid
    MERGE = "merge"  # its change was committed with a new version
    PAY = "pay"  # its voucher was settled
    EXPIRE = "expire"  # its deadline passed
    LOSE = "lose"  # its worker is gone; for a gang, any of the gang's workers
    REJECT = "reject"  # the report is not valid
    DISCARD = "discard"  # the loop ended before it, or another worker's report of the same units came first


_S, _T = LeaseState, Trigger

TABLE: dict[tuple[LeaseState, Trigger], LeaseState] = {
    (_S.OPEN, _T.LEASE): _S.LEASED,
    (_S.OPEN, _T.DISCARD): _S.CANCELLED,
    (_S.LEASED, _T.SUBMIT): _S.SUBMITTED,
    (_S.LEASED, _T.EXPIRE): _S.OPEN,
    (_S.LEASED, _T.LOSE): _S.OPEN,
    (_S.LEASED, _T.DISCARD): _S.CANCELLED,
    (_S.SUBMITTED, _T.ACCEPT): _S.ACCEPTED,
    (_S.SUBMITTED, _T.REJECT): _S.OPEN,
    (_S.SUBMITTED, _T.LOSE): _S.OPEN,
    (_S.ACCEPTED, _T.MERGE): _S.MERGED,
    (_S.ACCEPTED, _T.DISCARD): _S.DISCARDED,
    (_S.ACCEPTED, _T.REJECT): _S.OPEN,
    (_S.ACCEPTED, _T.LOSE): _S.OPEN,
    (_S.MERGED, _T.PAY): _S.PAID,
    (_S.DISCARDED, _T.PAY): _S.DISCARDED_PAID,
}

FINAL = frozenset(s for s in LeaseState if not any(s is state for state, _ in TABLE))  # nothing happens to these any more
COUNTED = frozenset({_S.MERGED, _S.PAID})  # its units are part of the model
OWED = frozenset({_S.ACCEPTED, _S.MERGED, _S.DISCARDED})  # valid work that isn't settled yet


def advance(state: LeaseState, trigger: Trigger) -> LeaseState:
    """The state after `trigger`. Raises IllegalTransition where the table has none."""
    try:
        return TABLE[state, trigger]
    except KeyError:
        raise IllegalTransition(f"a lease that is {state.value} can't {trigger.value}", state=state, trigger=trigger) from None


def diagram() -> str:
    """The table as a Mermaid state diagram; docs/training.md holds a copy, which a test compares."""
    lines = ["stateDiagram-v2", f"    [*] --> {LeaseState.OPEN.name}"]
    arrows: dict[tuple[LeaseState, LeaseState], list[str]] = {}
    for (state, trigger), after in TABLE.items():
        arrows.setdefault((state, after), []).append(trigger.value)
    lines += [f"    {state.name} --> {after.name}: {', '.join(triggers)}" for (state, after), triggers in arrows.items()]
    lines += [f"    {state.name} --> [*]" for state in LeaseState if state in FINAL]
    return "\n".join(lines)
