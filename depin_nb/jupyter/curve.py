"""A loss curve as numbers between 0 and 1 with its ticks, so that SVG and canvas only have to draw. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_POINTS = 200
LOG_FROM_RATIO = 40.0  # a curve whose largest value is this many times its smallest is drawn on a log axis
Tick = tuple[float, str]


@dataclass(frozen=True)
class Curve:
    """`points`: (x, y) with 0 <= x, y <= 1, y upwards, rounded to 1/1000. `x_ticks`, `y_ticks`: (place, label)."""

    points: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    log: bool = False
    skipped: int = 0  # values that were not finite


def curve(loss: Sequence[tuple[float, float]]) -> Curve | None:
    """The curve of (iteration, loss) pairs; None when there is nothing finite to draw."""
    finite = [(x, y) for x, y in loss if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return None
    thin = _decimated(finite, MOST_POINTS)
    first, last = thin[0][0], thin[-1][0]
    low, high = min(y for _, y in thin), max(y for _, y in thin)
    log = low > 0 and high / low >= LOG_FROM_RATIO
    y_values = _log_ticks(low, high) if log else _ticks(low, high, 4)
    bottom, top = min(low, y_values[0]), max(high, y_values[-1])
    if first == last:
        last = first + 1

    def across(x: float) -> float:
        return round((x - first) / (last - first), 3)

    def up(y: float) -> float:
        if log:
            return round(math.log(y / bottom) / math.log(top / bottom), 3)
        return round((y - bottom) / (top - bottom), 3)

    x_values = [x for x in _ticks(first, last, 5) if first <= x <= last]
    return Curve(
        points=tuple((across(x), up(y)) for x, y in thin),
        x_ticks=tuple((across(x), f"{x:,.0f}" if x == int(x) else f"{x:g}") for x in x_values),
        y_ticks=tuple((up(y), f"{y:.4g}") for y in y_values),
        log=log,
        skipped=len(loss) - len(finite),
    )


def _decimated(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Evenly picked points, the first and the last among them."""
    if len(points) <= most:
        return points
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round values (steps of 1, 2 or 5 times a power of ten) that enclose low..high."""
    if not math.isfinite(high - low):
        return [low, high]
    if high - low <= abs(high) * 1e-9 or high == low:
        pad = abs(high) * 0.5 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    start, end = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(start, end + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    start, end = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (end - start) // 4)
    return [10.0**e for e in range(start, end + stride, stride)]
