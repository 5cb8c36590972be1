"""Whose turn it is: device time shared between priority classes, then users, then runs, each by weight. Pure: no clock, no I/O.

Stride scheduling (Waldspurger and Weihl, MIT/LCS/TM-528, 1995) on three levels. Each class, user and run has a *pass*: the device-seconds
that it was lent, over its weight. Who has the smallest goes first. Who comes, or comes back, begins where the others stand. Nobody falls
further behind than CREDIT_S: who didn't use its part saves nothing up. The others' virtual time is the start of the latest service, as in
start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996, doi:10.1145/248156.248171).
A lease is charged with what it is expected to take when it is lent, and with what it took when it ends.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from depin_nb.core.errors import UsageError

PRIORITIES = ("high", "normal", "low")
FLOOR = 0.1  # of all device time for each class below the highest that wants some: low never starves
MAX_WEIGHT = 100.0
MAX_USER = 64  # characters
LEAST_S = 0.01  # charged for a lease at least: its handling costs too
CREDIT_S = 30.0  # device-seconds that one may be behind: who can't use its part (one device at a time) saves no more up
MAX_EXPECTED_S = 60.0  # charged ahead at most: what isn't known yet may be guessed far too high


@dataclass(frozen=True)
class Claim:
    """What a run may have beside others. `user`: as its kernel says. A user's part goes by the greatest weight of its runs."""

    user: str = ""
    weight: float = 1.0
    priority: str = "normal"

    def changed(self, said: Mapping[str, Any]) -> Claim:
        """With what is given of weight and priority. Raises UsageError for what can't be."""
        if unknown := sorted(set(said) - {"weight", "priority"}):
            raise UsageError(f"a share has no {', '.join(map(repr, unknown))}", hint="weight and priority can be set.")
        weight, priority = said.get("weight"), said.get("priority")
        return replace(
            self,
            weight=self.weight if weight is None else checked_weight(weight),
            priority=self.priority if priority is None else checked_priority(priority),
        )


def claim_of(said: Any) -> Claim:
    """A claim as a kernel sends it: user, weight, priority. Raises UsageError."""
    said = dict(said) if isinstance(said, Mapping) else {}
    user = said.pop("user", None)
    return replace(Claim().changed(said), user=user[:MAX_USER] if isinstance(user, str) else "")


def checked_weight(value: Any) -> float:
    """Raises UsageError for what isn't a weight."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 1 / MAX_WEIGHT <= value <= MAX_WEIGHT:
        raise UsageError(f"a weight can't be {value!r}", hint=f"It is a number from {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}; 1 is usual.")
    return float(value)


def checked_priority(value: Any) -> str:
    if value not in PRIORITIES:
        raise UsageError(f"a priority can't be {value!r}", hint=f"It is {', '.join(PRIORITIES)}.")
    return str(value)


@dataclass
class _Node:
    """`passed`: where its next service begins, in virtual seconds of its parent. `now`: the furthest that one of its children's did."""

    weight: float = 1.0
    passed: float = 0.0
    now: float = 0.0
    number: int = 0  # in the order of coming: who came first among equals

    def begins(self, parent: _Node) -> float:
        return max(self.passed, parent.now - CREDIT_S / self.weight)


Path = tuple[str, ...]  # (class), (class, user) or (class, user, run)


@dataclass(frozen=True)
class Charge:
    """What a lease was charged with when it was lent: seconds, and the weights of then."""

    path: Path
    seconds: float
    weights: tuple[float, ...]


class Shares:
    """Who goes next. Deterministic: the same calls give the same order. A choice takes time in proportion to the runs."""

    def __init__(self) -> None:
        self._nodes: dict[Path, _Node] = {(): _Node()}
        self._paths: dict[str, Path] = {}
        self._claims: dict[str, Claim] = {}
        self._came = 0

    def set(self, claims: Mapping[str, Claim]) -> None:
        """The runs that take part now, by id: others are forgotten, new ones begin where those here stand."""
        if claims == self._claims:
            return
        self._claims = dict(claims)
        self._paths = {run_id: (c.priority, c.user, run_id) for run_id, c in claims.items()}
        wanted: dict[Path, None] = {(): None} | {path[:depth]: None for path in self._paths.values() for depth in range(4)}
        self._nodes = {path: node for path, node in self._nodes.items() if path in wanted}
        known = list(self._nodes)
        for path in [path for path in wanted if path not in self._nodes]:
            self._came += 1
            parent = self._nodes[path[:-1]]
            siblings = [self._nodes[other].begins(parent) for other in known if other and other[:-1] == path[:-1]]
            self._nodes[path] = _Node(passed=min(siblings, default=parent.now), number=self._came)
        for path, weight in weights(claims).items():
            self._nodes[path].weight = weight

    def next(self, wanting: Collection[str]) -> str:
        """Which of these runs goes next."""
        at: Path = ()
        candidates = [self._paths[run_id] for run_id in wanting]
        for depth in (1, 2, 3):
            parent = self._nodes[at]
            at = min({path[:depth] for path in candidates}, key=lambda path: (self._nodes[path].begins(parent), self._nodes[path].number))
            candidates = [path for path in candidates if path[:depth] == at]
        return at[2]

    def lent(self, run_id: str, expected_s: float) -> Charge:
        """A lease of the run was lent, which is expected to take so long."""
        path, seconds = self._paths[run_id], min(max(LEAST_S, expected_s), MAX_EXPECTED_S)
        used = []
        for depth in (1, 2, 3):
            node, parent = self._nodes[path[:depth]], self._nodes[path[: depth - 1]]
            begins = node.begins(parent)
            parent.now = max(parent.now, begins)
            node.passed = begins + seconds / node.weight
            used.append(node.weight)
        return Charge(path, seconds, tuple(used))

    def ended(self, charge: Charge, took_s: float) -> None:
        """A lease ended, however: it held its device for so long."""
        for depth, weight in enumerate(charge.weights, 1):
            node = self._nodes.get(charge.path[:depth])
            if node is not None:
                node.passed += (max(LEAST_S, took_s) - charge.seconds) / weight


def weights(claims: Mapping[str, Claim]) -> dict[Path, float]:
    """The weight of each class, user and run beside its siblings."""
    found: dict[Path, float] = {}
    for run_id, claim in claims.items():
        found[claim.priority, claim.user, run_id] = claim.weight
        found[claim.priority, claim.user] = max(found.get((claim.priority, claim.user), 0.0), claim.weight)
    classes = [name for name in PRIORITIES if any(claim.priority == name for claim in claims.values())]
    for place, name in enumerate(classes):
        found[name,] = FLOOR if place else 1 - FLOOR * (len(classes) - 1)
    return found


def fractions(claims: Mapping[str, Claim]) -> dict[str, float]:
    """Which part of all device time each run is due; together 1."""
    weight = weights(claims)
    sums: dict[Path, float] = {}
    for path, own in weight.items():
        sums[path[:-1]] = sums.get(path[:-1], 0.0) + own
    paths = {run_id: (c.priority, c.user, run_id) for run_id, c in claims.items()}
    return {run_id: math.prod(weight[path[:depth]] / sums[path[: depth - 1]] for depth in (1, 2, 3)) for run_id, path in paths.items()}


def portions(due: Mapping[str, float], most: Mapping[str, float], workers: int) -> dict[str, float]:
    """How many workers each run is due: by its fraction, none more than `most` of it; what one can't use goes to the others."""
    found: dict[str, float] = {}
    left, rest = float(workers), dict(due)
    while rest:
        whole = sum(rest.values())
        full = [run_id for run_id, part in rest.items() if left * part / whole >= most.get(run_id, math.inf)]
        if not full:
            return found | {run_id: left * part / whole for run_id, part in rest.items()}
        for run_id in full:
            del rest[run_id]
            found[run_id] = most[run_id]
        left -= sum(most[run_id] for run_id in full)
    return found
