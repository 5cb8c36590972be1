"""`depin`'s commands: parse, call, print. Exit codes: 0 done, 1 failed, 2 not understood, 3 a hub is in the way, 4 not verified."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..core import config
from ..core.errors import DepinError
from . import tables
from .parser import parser
from .remote import snapshot
from .runs import RUNS
from .showing import show

NOT_VERIFIED = 4


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["hub"]:
        from ..hub.command import main as hub

        return hub(words[1:])
    arguments = parser().parse_args(words)
    try:
        return COMMANDS[arguments.command](arguments)
    except DepinError as error:
        print(f"depin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has enough
        sys.stderr.close()
        return 0


def _overview(data: dict[str, Any]) -> str:
    hub = data["hub"]
    lines = [f"hub {hub['id']}  process {hub['pid']}  {hub['home']}", f"dashboard {hub['dashboard']}", "", tables.workers(data)]
    if data["runs"]:
        lines += ["", tables.active(data["runs"])]
    return "\n".join(lines)


def up(arguments: argparse.Namespace) -> int:
    from .. import wiring

    session = wiring.up(arguments.backend, arguments.workers)
    try:
        data = snapshot()
    finally:
        session.close()
    show(arguments, data, lambda: _overview(data))
    return 0


def scale(arguments: argparse.Namespace) -> int:
    from .. import wiring

    session = wiring.current()
    try:
        session.scale(arguments.count, arguments.backend)
        data = snapshot()
    finally:
        session.close()
    show(arguments, data, lambda: _overview(data))
    return 0


def down(_: argparse.Namespace) -> int:
    from ..hub.launch import find_hub, stop_hub
    from ..hub.processes import end_left

    info = find_hub()
    if info is None:
        left = end_left()
        print("no hub is running" + (f"; {left} processes that a killed one had left have ended" if left else ""))
        return 0
    stop_hub(info)
    print(f"hub {info.hub_id} has ended; its runs stay in {config.journal_file()}")
    return 0


def status(arguments: argparse.Namespace) -> int:
    data = snapshot()
    show(arguments, data, lambda: _overview(data))
    return 0


def runs(arguments: argparse.Namespace) -> int:
    from .. import wiring

    if arguments.action is not None:
        return RUNS[arguments.action](arguments)
    rows = wiring.runs()
    show(arguments, rows, lambda: tables.journal(rows))
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    from ..hub.records.journal import Journal
    from ..hub.records.orphaned import orphaned

    journal = Journal(config.journal_file(), writing=False)
    try:
        row = asdict(orphaned(journal.run(arguments.run)))
    finally:
        journal.close()
    show(arguments, row, lambda: tables.run(row))
    return 0


def attach(arguments: argparse.Namespace) -> int:
    """Exit code 0 when the run has ended well, 1 when not."""
    from .. import wiring
    from ..core.errors import NoSuchRun
    from ..session.detached import DetachedRun

    newest = arguments.run or next((row["run_id"] for row in wiring.runs()), None)
    if newest is None:
        raise NoSuchRun("the journal has no run yet", run_id="")
    run, shown = wiring.attach(newest), ""
    for status in run.watch() if isinstance(run, DetachedRun) else [run.status]:
        if (line := tables.progress(status)) != shown:
            print(line, flush=True)
            shown = line
    return int(run.state != "finished")


def logs(arguments: argparse.Namespace) -> int:
    from .. import wiring

    run = wiring.detached(arguments.run)
    for text in run.follow() if arguments.follow else [run.logs()]:
        print(text, end="", flush=True)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    from .. import wiring

    session = wiring.current()
    try:
        status = session.control(arguments.run, "stop")
    finally:
        session.close()
    show(arguments, status.to_dict(), lambda: tables.progress(status))
    return 0


def ledger(arguments: argparse.Namespace) -> int:
    return {"verify": verify, "show": receipts_of}[arguments.ledger](arguments)


def verify(arguments: argparse.Namespace) -> int:
    from .. import wiring

    report = wiring.verify(arguments.run)
    data = report.to_dict()
    show(arguments, data, lambda: tables.verified(data, tables.dpn))
    return 0 if report.ok else NOT_VERIFIED


def receipts_of(arguments: argparse.Namespace) -> int:
    from ..core.errors import NoSuchRun
    from ..ledger import store

    conn = store.connect(config.journal_file(), read_only=True)
    try:
        row = store.run(conn, arguments.run)
        if row is None:
            raise NoSuchRun(f"the ledger has no run {arguments.run}", run_id=arguments.run)
        receipts = [asdict(receipt) for receipt in store.receipts(conn, arguments.run)]
    finally:
        conn.close()

    def text() -> str:
        lines = [
            [r["lease_id"], r["worker_id"], f"{r['first']}+{r['count']}", f"{r['flops']:,}", tables.dpn(r["units_dpn"])] for r in receipts
        ]
        total = tables.dpn(sum(r["units_dpn"] for r in receipts))
        table = tables.columns(lines, ["lease", "worker", "iterations", "FLOPs", "earned"], right=[2, 3, 4])
        return f"{table}\n\n{len(receipts)} receipts, {total}; the run is {row.state}"

    show(arguments, {"run": {**asdict(row), "root": row.root.hex() if row.root else None}, "receipts": receipts}, text)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    from .doctor import checks

    found = []
    for check in checks():
        found.append(check)
        if not arguments.json:
            print(check.line(), flush=True)
    if arguments.json:
        print(json.dumps([asdict(check) for check in found], indent=1))
    return int(any(check.ok is False for check in found))


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": up,
    "down": down,
    "status": status,
    "scale": scale,
    "runs": runs,
    "attach": attach,
    "logs": logs,
    "stop": stop,
    "run-info": run_info,
    "ledger": ledger,
    "doctor": doctor,
}
