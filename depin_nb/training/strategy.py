"""How a run is spread over its workers: which strategy, and how many iterations each worker gets in a round. Pure; no torch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from depin_nb.core.errors import UsageError
from depin_nb.core.lease import StrategyConfig

from .sparse import CHUNK, KEPT, MANY

STRATEGIES = ("auto", "sync", "local", "sparse")
OPTIONS = ("inner_steps", "bits", "outer_lr", "outer_momentum", "error_feedback", "quorum")
MAX_INNER_STEPS = 50  # longer rounds drift (docs/training.md) and couldn't be audited by replay
LEASE_S = 30.0  # of slow iterations fewer make a lease: what a lost device costs, and how long the notebook sees nothing new
UNKNOWN_INNER_STEPS = 10  # when the loop's length isn't known, it may be short
ROUNDS = 3  # merges to have at least in an entry: more cost transfers and gain nothing (bench/local_steps.py)
DOWN_BITS = {1: 1, 2: 4, 4: 4, 8: 8, 32: 32}  # new versions travel as coarsely as changes do, or by 4 bits where these are sparse
COARSE_ROUNDS = 3  # merges with 1 bit for each one with 4: as many bytes, and closer to per-step sync (bench/bytes_loss.py)
COARSE_LR = 1.25  # outer rate with 1 bit, without momentum: what is left out and sent later has a momentum of its own
MAX_STALENESS = 4  # merges: a change from further back counts for nothing, its units are leased again
OUTER_MOMENTUM = 0.3  # of 0 to 0.5, with outer rate 1, what came closest to a local run on short runs (bench/local_steps.py)


def choose(
    requested: str | None,
    *,
    workers: int,
    backend: str,
    total: int | None,
    solo_reason: str | None,
    options: Mapping[str, Any],
    because: str = "",
) -> tuple[StrategyConfig, str]:
    """The strategy of a run and the reason in plain words.

    `requested`: `auto` (as None), `sync`, `local` or `sparse`. `backend`: `local` (fast links) or `depin` (home links). `total`: iterations
    of an entry, None when unknown. `solo_reason`: why the loop can't be spread, None when it can. `options`: settings of `StrategyConfig`
    that the user gave (`inner_steps`, `bits`, `outer_lr`, `outer_momentum`, `error_feedback`, `quorum`); None counts as not given.
    `because`: why it is requested, where that wasn't the user (`choosing.suited`).
    Raises UsageError for names and values that can't be used.
    """
    name = "auto" if requested is None else requested
    if name not in STRATEGIES:
        raise UsageError(f"there is no strategy {requested!r}{_nearest(name, STRATEGIES)}", hint=f"Strategies: {', '.join(STRATEGIES)}.")
    given = _checked(options)
    if solo_reason or workers <= 1:
        config = StrategyConfig(name="sync", solo=True)
        if not solo_reason:
            return config, "one worker runs every iteration in order, exactly as the cell would here"
        return config, f"one worker runs every iteration in order: {solo_reason}"
    inner_steps = given.pop("inner_steps", None)
    coarse = given.get("bits") == 1
    steps = inner_steps or _inner_steps(total, workers, COARSE_ROUNDS if coarse else 1)
    if name == "sync" or (name == "auto" and backend == "local"):
        if given:
            wrong = ", ".join(given)
            raise UsageError(
                f"{wrong} says nothing to strategy sync", hint="sync sends whole gradients at every step; use --strategy local."
            )
        why = because or ("as asked" if name == "sync" else "the links on one machine are fast")
        config = StrategyConfig(name="sync", solo=False, inner_steps=steps)
        return config, f"{why}: {workers} workers average their gradients at every step, so a step sees {workers} batches"
    own = {"name": "local", "solo": False, "inner_steps": steps, "outer_momentum": OUTER_MOMENTUM, "bits": 4}
    if name == "sparse":
        if "bits" in given:
            raise UsageError("bits says nothing to strategy sparse", hint="sparse sends 2 bits of each value; use --strategy local.")
        own |= {"name": "sparse", "outer_momentum": 0.0, "bits": 2}  # what is left out and sent later has a momentum of its own
    elif coarse:
        own |= {"outer_lr": COARSE_LR, "outer_momentum": 0.0}
    config = StrategyConfig(**{**own, **given})
    config = replace(config, down_bits=DOWN_BITS[config.bits], lease_s=0.0 if inner_steps else LEASE_S)
    why = because or ("home links are slow" if name == "auto" else "as asked")
    often = COARSE_ROUNDS if coarse else 1
    merges = f"about {ROUNDS * often} merges an entry, at most {MAX_INNER_STEPS // often} iterations"
    chosen = merges if total else "the loop's length isn't known"
    length = "as asked" if inner_steps else chosen
    largest = {2: KEPT, 1: MANY}.get(config.bits)
    sent = "whole values" if config.bits == 32 else f"{config.bits}-bit changes"
    sent = sent if largest is None else f"the largest {largest:,} changes of each {CHUNK:,}"
    return config, f"{why}, each of {workers} workers takes about {steps} iterations between merges ({length}) and sends {sent}"


def _inner_steps(total: int | None, workers: int, often: int) -> int:
    """`often`: so many times as many merges."""
    steps = UNKNOWN_INNER_STEPS if total is None else min(MAX_INNER_STEPS, total // (workers * ROUNDS))
    return max(1, steps // often)


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in OPTIONS:
            raise UsageError(f"there is no setting {name!r} of a strategy{_nearest(name, OPTIONS)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        good = {
            "inner_steps": type(value) is int and value >= 1,
            "bits": type(value) is int and value in (1, 4, 8, 32),
            "outer_lr": number and 0 < value <= 2,
            "outer_momentum": number and 0 <= value < 1,
            "error_feedback": isinstance(value, bool),
            "quorum": number and 0 < value <= 1,
        }
        if not good[name]:
            allowed = {"inner_steps": "a whole number from 1", "bits": "1, 4, 8 or 32", "outer_lr": "above 0 and at most 2"}
            allowed |= {"outer_momentum": "at least 0 and below 1", "error_feedback": "true or false", "quorum": "above 0 and at most 1"}
            raise UsageError(f"{name} can't be {value!r}", hint=f"It is {allowed[name]}.")
    return given


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def cut(open_units: int, speeds: Mapping[str, float], config: StrategyConfig) -> dict[str, int]:
    """How many contiguous units each free worker gets in a round, so that all finish at about the same time.

    `speeds`: iterations/s by worker; one that isn't a positive number counts as the slowest known. In all it is `inner_steps` a
    worker, or what is open if that is less. Each gets at least 1 while units last, the fastest first; who gets none is missing from
    the result. The same input gives the same result, in any order.
    """
    known = [s for s in speeds.values() if 0 < s < math.inf]
    slowest = min(known, default=1.0)
    pace = {w: s if 0 < s < math.inf else slowest for w, s in speeds.items()}
    order = sorted(pace, key=lambda w: (-pace[w], w))
    total = min(max(0, open_units), max(1, config.inner_steps) * len(order))
    counts = dict.fromkeys(order[:total], 1)
    # Each further unit goes to the worker that would be done with it first: that minimises when the last one is done.
    done_at = [(2 / pace[w], place, w) for place, w in enumerate(counts)]
    heapq.heapify(done_at)
    for _ in range(total - len(counts)):
        _, place, worker = done_at[0]
        counts[worker] += 1
        heapq.heapreplace(done_at, ((counts[worker] + 1) / pace[worker], place, worker))
    return counts


@dataclass(frozen=True)
class GangPart:
    """One rank's part of a gang's span: `units` are offsets into the span, `groups[i]` the group of the i-th, `group_size[i]` its ranks."""

    rank: int
    units: tuple[int, ...]
    groups: tuple[int, ...]
    group_size: tuple[int, ...]


def cut_gang(open_units: int, workers: int, config: StrategyConfig, *, closed: bool = True) -> tuple[GangPart, ...]:
    """A round of a `sync` gang over the next units: unit i of the span goes to rank i % workers, in group i // workers.

    The span is `inner_steps` groups or what is open. Its last group may be short only when the entry is `closed` (no units will come);
    otherwise it is cut to whole groups, and without one the result is empty. With fewer units than workers the gang is that much smaller.
    """
    span = min(max(0, open_units), max(1, config.inner_steps) * max(0, workers))
    if workers > 0 and not closed:
        span -= span % workers
    parts = []
    for rank in range(min(workers, span)):
        units = tuple(range(rank, span, workers))
        groups = tuple(i // workers for i in units)
        parts.append(GangPart(rank, units, groups, tuple(min(workers, span - g * workers) for g in groups)))
    return tuple(parts)
