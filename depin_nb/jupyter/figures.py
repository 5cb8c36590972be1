"""Figures as people read them: times, counts, bytes, shortened signatures. Pure; the only place that rounds."""

from __future__ import annotations

import math


def duration(seconds: float | None) -> str:
    """Seconds as `0:07`, `12:30` or `1:02:03`; `-` when not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count(number: int) -> str:
    """A whole number with thousands separated."""
    return f"{number:,d}"


def rate(per_s: float) -> str:
    """A rate a second: three figures below 10, whole above."""
    if not math.isfinite(per_s) or per_s <= 0:
        return "0"
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def number(value: float) -> str:
    """A measured value such as a loss, with four significant digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}"


def size(nbytes: int) -> str:
    """Bytes in decimal units: `512 B`, `3.2 kB`, `1.5 GB`."""
    value, unit = float(nbytes), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{int(value)} B" if unit == "B" else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def percent(fraction: float | None) -> str:
    """`68 %`; empty when not known. Shows 100 only when all is done."""
    if fraction is None:
        return ""
    return f"{100 if fraction >= 1 else min(99, int(fraction * 100))} %"


def short(text: str, head: int = 6, tail: int = 4) -> str:
    """A long identifier by its ends: `3xKp9Q…f2aZ`."""
    return text if len(text) <= head + tail + 1 else f"{text[:head]}…{text[-tail:]}"


def clip(text: str, most: int) -> str:
    """At most `most` characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
