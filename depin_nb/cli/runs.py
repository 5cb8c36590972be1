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


def export(arguments: argparse.Namespace) -> int:
    from .. import wiring

    folder = wiring.export_run(arguments.run, arguments.folder)
    show(arguments, {"folder": str(folder)}, lambda: f"{folder}\n  -> on the other hub: depin runs import {folder}")
    return 0


def take_in(arguments: argparse.Namespace) -> int:
    from .. import wiring

    run_id = wiring.import_run(arguments.folder)
    show(arguments, {"run": run_id}, lambda: f"{run_id} is here\n  -> `%%depin train --resume {run_id}` on top of its cell goes on with it")
    return 0


def share(arguments: argparse.Namespace) -> int:
    from .. import wiring

    session = wiring.current()
    try:
        status = session.control(arguments.run, "share", {"weight": arguments.weight, "priority": arguments.priority})
    finally:
        session.close()
    show(arguments, status.to_dict(), lambda: f"{status.run_id}: weight {status.weight:g}, {status.priority}")
    return 0


RUNS: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": check,
    "checkpoints": checkpoints,
    "export": export,
    "import": take_in,
    "share": share,
}
