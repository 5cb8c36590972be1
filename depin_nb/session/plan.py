"""What a run would do, in plain words and figures, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def facts(self) -> list[tuple[str, str]]:
        """The plan as (heading, sentence), the most important first."""
        count = "an unknown number of" if self.iterations is None else f"{self.iterations:,}"
        workers = "1 worker" if self.strategy.solo or self.workers == 1 else f"{self.workers} workers"
        once, down, up = size(self.program_bytes + self.blob_bytes), size(self.state_bytes), size(self.change_bytes)
        facts = [
            ("Loop", f"{self.where} -> {count} iterations on {workers}"),
            ("Strategy", f"{self.strategy.name}: {self.reason}"),
            ("On the worker", ", ".join(self.ships) or "nothing"),
            ("Stays here", ", ".join(("prints and bookkeeping", *self.stays))),
            ("Sent", f"{once} to each worker once; a version down {down}; a lease's change up about {up}"),
            ("One iteration", f"{self.flops_per_iteration / 1e6:,.2f} MFLOP, {self.seconds_per_iteration * 1e3:.1f} ms here"),
        ]
        return facts + [("Note", caveat) for caveat in self.caveats]

    def text(self) -> str:
        facts = [f"{heading + ':':<15}{sentence}" for heading, sentence in self.facts()]
        rows = [f"  {row.text()}" for row in self.rows]
        return "\n".join([*facts, *(["For one pass of this loop (nothing was spent):"] if rows else []), *rows])

    def __repr__(self) -> str:
        return self.text()


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
