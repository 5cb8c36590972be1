"""What a run would do, in plain words and figures, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..core.lease import StrategyConfig
from ..metering.estimate import EstimateRow


@dataclass(frozen=True)
class Plan:
    """`where`: the loop and its line. `program_bytes` and `blob_bytes` go to each worker once, `state_bytes` each version down,
    `change_bytes` each lease up. `rows`: the same work elsewhere, side by side; every figure tagged.
    """

    where: str
    strategy: StrategyConfig
    reason: str
    workers: int
    iterations: int | None
    flops_per_iteration: int
    seconds_per_iteration: float
    program_bytes: int
    blob_bytes: int
    state_bytes: int
    change_bytes: int
    stays: tuple[str, ...]
    ships: tuple[str, ...]
    caveats: tuple[str, ...]
    rows: tuple[EstimateRow, ...]

    def lines(self) -> list[str]:
        """The plan in sentences, the most important first."""
        count = "an unknown number of" if self.iterations is None else str(self.iterations)
        workers = "1 worker" if self.strategy.solo or self.workers == 1 else f"{self.workers} workers"
        lines = [
            f"{self.where} -> {count} iterations on {workers}",
            f"strategy {self.strategy.name}: {self.reason}",
            f"sent to each worker once: {size(self.program_bytes + self.blob_bytes)}; each version down {size(self.state_bytes)}, "
            f"each lease's change up about {size(self.change_bytes)}",
            f"on the worker: {', '.join(self.ships) or 'nothing'}",
            f"stays in the notebook: prints and bookkeeping{''.join(', ' + name for name in self.stays)}",
            f"one iteration here: {self.flops_per_iteration / 1e6:,.2f} MFLOP, {self.seconds_per_iteration * 1e3:.1f} ms",
        ]
        return lines + [f"note: {caveat}" for caveat in self.caveats]

    def text(self) -> str:
        rows = [row.text() for row in self.rows]
        return "\n".join(
            [*self.lines(), *(["estimate for one pass of this loop (nothing was spent):"] if rows else []), *(f"  {r}" for r in rows)]
        )

    def html(self) -> str:
        items = "".join(f"<li>{escape(line)}</li>" for line in self.lines())
        rows = "".join(
            f"<tr>{''.join(f'<td style=text-align:left>{escape(c)}</td>' for c in row.text().split(' · '))}</tr>" for row in self.rows
        )
        table = f"<b>Estimate for one pass of this loop (nothing was spent)</b><table>{rows}</table>" if rows else ""
        return f"<div><b>Plan</b><ul>{items}</ul>{table}</div>"

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()


def size(count: int) -> str:
    """Bytes for people: `12.3 kB`."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def kinds(names: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """`model (Sequential)` and so on."""
    return tuple(f"{name} ({kind})" for name, kind in names)
