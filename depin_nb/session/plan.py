"""What a run would do, in plain words and figures, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.lease import StrategyConfig
from ..loop.ship.manifest import Manifest
from ..metering.estimate import EstimateRow

SHOWN_ITEMS = 8
MOST_WHERE = 90  # characters of the loop's own text in a line
SOLO_CAVEAT = "one worker does it all: "  # as `planning.caveats` says it
_BASIC = ("torch", "numpy")  # every worker has them: they are named after the others


@dataclass(frozen=True)
class Plan:
    """`where`: the loop and its line. `program_bytes` and `blob_bytes` go to each worker once, `state_bytes` the first version down and
    `down_bytes` each later one (0: as many), `change_bytes` each lease up, `unit_bytes` each iteration's share of the data down.
    `lacking`: what keeps workers out of the run.
    `rows`: the same work elsewhere, side by side; every figure tagged.
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
    unit_bytes: int = 0
    data: str = ""
    lacking: tuple[str, ...] = ()
    down_bytes: int = 0
    manifest: Manifest = field(default_factory=Manifest)

    def headline(self) -> str:
        """The plan in one line."""
        return f"{self.loop()}, {self.way()}"

    def loop(self) -> str:
        """Which loop, how many iterations of it, on how many workers."""
        where = self.where if len(self.where) <= MOST_WHERE else self.where[: MOST_WHERE - 1] + "…"
        return f"{where} -> {self._count()} on {self._who()}"

    def way(self) -> str:
        """The strategy and why."""
        return f"{self.strategy.name}: {self.reason}"

    def facts(self) -> list[tuple[str, str]]:
        """The plan as (heading, sentence), the most important first."""
        facts = [
            ("Loop", self.loop()),
            ("Shared out", self._shared()),
            ("Strategy", self.way()),
            ("On the worker", ", ".join(self.ships) or "nothing"),
            ("Stays here", ", ".join(("prints and bookkeeping", *self.stays))),
            ("Data", self.data),
            ("Sent once", f"{size(self.program_bytes + self.blob_bytes)} to each worker: {self._largest()}"),
            ("Each lease", self._lease()),
            ("Packages", self._packages()),
            ("Withheld", self._withheld()),
            ("Left out", "; ".join(self.lacking)),
            ("One iteration", f"{self.flops_per_iteration / 1e6:,.2f} MFLOP, {self.seconds_per_iteration * 1e3:.1f} ms here"),
        ]
        return [(heading, sentence) for heading, sentence in facts if sentence] + [
            ("Note", caveat) for caveat in self._unsaid() if caveat != self.data
        ]

    def notices(self) -> list[str]:
        """What a user should know while it runs."""
        withheld = [f"withheld: {self._withheld()}"] if self.manifest.withheld else []
        return [*self._unsaid(), *withheld, *(f"left out: {sentence}" for sentence in self.lacking)]

    def items(self) -> list[tuple[str, str, str]]:
        """(name, kind, size) of what leaves this machine, the largest first; many small ones summed up."""
        shown, others = self.manifest.largest(SHOWN_ITEMS)
        return [(i.name, i.kind, size(i.nbytes)) for i in (*shown, *([others] if others is not None else []))]

    def text(self) -> str:
        facts = [f"{heading + ':':<15}{sentence}" for heading, sentence in self.facts()]
        rows = [f"  {row.text()}" for row in self.rows]
        items = self.items()
        wide = [max((len(item[column]) for item in items), default=0) for column in range(3)]
        sent = [f"  {name:<{wide[0]}}  {kind:<{wide[1]}}  {nbytes:>{wide[2]}}" for name, kind, nbytes in items]
        return "\n".join(
            [
                *facts,
                *(["What leaves this machine:", *sent] if sent else []),
                *(["For one pass of this loop (nothing was spent):"] if rows else []),
                *rows,
            ]
        )

    def __repr__(self) -> str:
        return self.text()

    def _unsaid(self) -> list[str]:
        """The caveats that the strategy's reason doesn't tell already."""
        return [caveat for caveat in self.caveats if caveat.removeprefix(SOLO_CAVEAT) not in self.reason]

    # --- sentences -----------------------------------------------------------------------------------

    @property
    def _alone(self) -> bool:
        return self.strategy.solo or self.workers == 1

    def _count(self) -> str:
        return "an unknown number of iterations" if self.iterations is None else f"{self.iterations:,} iterations"

    def _who(self) -> str:
        return "1 worker" if self._alone else f"{self.workers} workers"

    def _shared(self) -> str:
        if self._alone:
            return "nothing: one worker runs every iteration in the loop's order"
        if self.strategy.name == "sync":
            return f"the iterations, {self.workers} at a time: each worker takes one of every {self.workers}"
        return f"the iterations: each worker takes about {self.strategy.inner_steps} in a row, then all are merged"

    def _lease(self) -> str:
        down = f"{size(self.unit_bytes)} an iteration and a version of {size(self.down_bytes or self.state_bytes)} down"
        return f"{down}; its change, about {size(self.change_bytes)}, up"

    def _largest(self) -> str:
        sent = [f"{item.name} {size(item.nbytes)}" for item in self.manifest.items[:2] if item.nbytes > self.manifest.nbytes // 4]
        return ", ".join([*sent, f"program {size(self.program_bytes)}"])

    def _packages(self) -> str:
        named = sorted(self.manifest.packages, key=lambda package: (package[0] in _BASIC, package[0]))
        return ", ".join(f"{name} {version}" for name, version in named)

    def _withheld(self) -> str:
        names = ", ".join(self.manifest.withheld)
        return f"{names}: looks like a secret, so it stays here; --send NAME lets it travel" if names else ""


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
