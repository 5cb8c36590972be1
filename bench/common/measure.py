"""What every benchmark here does alike: its options, progress, turns (A B A B), medians, the table and the goals."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

CHECKOUT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def parser(doc: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """A parser with what all have: --quick (see that it works; its figures mean nothing) and --repeats."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a short pass that shows that everything works; its figures mean nothing")
    made.add_argument("--repeats", type=int, default=repeats, metavar="N", help=f"turns of each; the median counts (default {repeats})")
    return made


def say(text: str) -> None:
    """Progress, to the standard error output."""
    print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", file=sys.stderr, flush=True)


def in_turns(kinds: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each kind gave, all kinds once in each of `repeats` turns, so that what else the machine does meets them alike."""
    found: dict[str, list[T]] = {name: [] for name in kinds}
    for turn in range(repeats):
        for name, measure in kinds.items():
            start = time.monotonic()
            found[name].append(measure())
            say(f"turn {turn + 1} of {repeats}: {name} ({time.monotonic() - start:.1f} s)")
    return found


def ratios(first: Sequence[float], second: Sequence[float]) -> float:
    """The median of the ratios of each turn: first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class Goal:
    """`reached` against `goal`; `most`: the goal is an upper bound. `unit`: a format such as `{:.1%}` or `{:.2f} s`."""

    what: str
    reached: float
    goal: float
    unit: str = "{:.1%}"
    most: bool = False

    @property
    def met(self) -> bool:
        return self.reached <= self.goal if self.most else self.reached >= self.goal

    def text(self) -> str:
        bound = "at most" if self.most else "at least"
        reached, goal = self.unit.format(self.reached), self.unit.format(self.goal)
        return f"{self.what}: {reached} (goal: {bound} {goal}) {'met' if self.met else 'MISSED'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    wide = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in wide) + "|", *lines[1:]])


def machine() -> str:
    """The machine in one line: processor, cores, memory, versions, date."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")), model)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return f"{model}, {os.cpu_count()} cores, {memory_bytes / 1e9:.0f} GB, {versions}, {datetime.date.today():%Y-%m-%d}"


def report(head: Sequence[str], rows: Sequence[Sequence[str]], goals: Sequence[Goal], *, quick: bool, notes: Sequence[str] = ()) -> int:
    """Prints the table, the notes, the goals and the machine. The exit code: 1 when a goal is missed and the figures mean something."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    print("\n" + table(head, rows) + "\n")
    for note in notes:
        print(note)
    for goal in goals:
        print(goal.text())
    print(f"{machine()}; load {load:.1f}")
    if quick:
        print("--quick: these figures mean nothing.")
    return int(not quick and not all(goal.met for goal in goals))


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
