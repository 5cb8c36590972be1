"""`depin runs ACTION`: what can be done with a run of the journal."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from . import tables
from .showing import show


def check(arguments: argparse.Namespace) -> int:
    """Exit code 1 when the run isn't what it says."""
    from .. import wiring

    report = wiring.check(arguments.run)
    data = report.to_dict()
    show(arguments, data, lambda: tables.checked(data))
    return int(not report.ok)


def checkpoints(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from .. import wiring

    found = wiring.checkpoints(arguments.run)
    show(arguments, [{**asdict(c), "path": str(c.path)} for c in found], lambda: tables.checkpoints(found))
    return 0


RUNS: dict[str, Callable[[argparse.Namespace], int]] = {"check": check, "checkpoints": checkpoints}
