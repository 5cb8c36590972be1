"""Chooses the strategy again once the model's size and an iteration's time are known: what `auto` comes to on measured links. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backends.base import profile
from ..core.lease import StrategyConfig
from ..core.state import PARAM, State
from ..loop.contract import Entering
from ..training.choosing import Link, Load, suited
from ..training.strategy import choose
from .options import TrainOptions


def slowest(workers: Sequence[Any]) -> Link | None:
    """The slowest of the devices' links as they measured them, each way; None on one machine, or where one doesn't say."""
    if not workers or any(d.kind == "local" or d.up_mbit_s <= 0 for d in workers):
        return None
    up, down = (min(getattr(d, way) for d in workers) * 1e6 / 8 for way in ("up_mbit_s", "down_mbit_s"))
    return Link(up, down, max(d.latency_ms for d in workers) / 1e3)


def suit(
    strategy: StrategyConfig,
    entering: Entering,
    options: TrainOptions,
    *,
    workers: Sequence[Any],
    backend: str,
    step_s: float,
    state: State,
) -> tuple[StrategyConfig, str] | None:
    """The strategy and why; None where the first choice stands: it was asked for, it is solo, or no link was measured.

    `step_s`: an iteration on this machine's core.
    """
    link = slowest(workers)
    if options.strategy != "auto" or options.bits is not None or strategy.solo or link is None:
        return None
    count = len(workers)
    speed = sum(profile(d.kind).speed for d in workers) / count
    values = sum(t.numel() for slot, t in state.tensors.items() if state.kinds[slot] == PARAM)
    whole = None if entering.total is None or entering.passes is None else entering.total * entering.passes
    merges = None if whole is None else whole / (count * strategy.inner_steps)
    name, why = suited(link, Load(values, step_s / speed, strategy.inner_steps, merges))
    total, tuning = entering.total, options.tuning()
    return choose(name, workers=count, backend=backend, total=total, solo_reason=None, options=tuning, because=why)
