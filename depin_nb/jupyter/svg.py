"""The drawings of tier 1 as inline SVG: loss curve and lane. Colours come from the style sheet's classes and `currentColor`. Pure."""

from __future__ import annotations

from html import escape

from .curve import Curve
from .view import SPAN_STATES, Worker

WIDTH, HEIGHT = 420, 170  # about as large as it is shown, so that whole units are fine enough
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 30
LANE_WIDTH = 300


def curve_svg(curve: Curve | None, label: str) -> str:
    """The loss curve with both axes; without points an empty frame that says so."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    base = TOP + high
    if curve is None:
        inner = f'<text x="{LEFT + wide / 2:g}" y="{TOP + high / 2:g}" text-anchor="middle">the first loss is still to come</text>'
        return _svg(f'<path class="depin-grid" d="M{LEFT} {base}h{wide}"/>{inner}', label)
    parts = []
    for place, text in curve.y_ticks:
        y = base - place * high
        parts.append(f'<path class="depin-grid" d="M{LEFT} {y:.1f}h{wide}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(text)}</text>')
    for place, text in curve.x_ticks:
        x = LEFT + place * wide
        anchor = "end" if place > 0.95 else "start" if place < 0.05 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{base + 13}" text-anchor="{anchor}">{escape(text)}</text>')
    parts.append(f'<text x="{LEFT + wide / 2:g}" y="{HEIGHT - 3}" text-anchor="middle">iteration</text>')
    scale = "loss, log scale" if curve.log else "loss"
    parts.append(f'<text x="10" y="{TOP + high / 2:g}" text-anchor="middle" transform="rotate(-90 10 {TOP + high / 2:g})">{scale}</text>')
    line = " ".join(f"{LEFT + x * wide:.0f},{base - y * high:.0f}" for x, y in curve.points)
    if len(curve.points) > 1:
        parts.append(f'<polyline class="depin-line" points="{line}"/>')
    x, y = curve.points[-1]
    parts.append(f'<circle class="depin-dot" cx="{LEFT + x * wide:.0f}" cy="{base - y * high:.1f}" r="3"/>')
    return _svg("".join(parts), label)


def _svg(inner: str, label: str) -> str:
    return f'<svg class="depin-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inner}</svg>'


def lane_svg(worker: Worker) -> str:
    """A worker's lane: one path for each state, so that it stays small."""
    paths = []
    for state in SPAN_STATES:
        moves = "".join(f"M{a * LANE_WIDTH:.0f} 6h{max(1, round((b - a) * LANE_WIDTH))}" for a, b, kind in worker.spans if kind == state)
        if moves:
            paths.append(f'<path class="depin-{state}" d="{moves}"/>')
    return f'<svg class="depin-lane" viewBox="0 0 {LANE_WIDTH} 12" preserveAspectRatio="none" aria-hidden=true>{"".join(paths)}</svg>'
