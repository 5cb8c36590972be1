"""What `depin` understands. An unknown word is answered with the nearest known one."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from importlib.metadata import version
from typing import Any, NoReturn

USAGE_EXIT = 2
BACKENDS = ("local", "depin")
PRIORITIES = ("high", "normal", "low")


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest match in its complaints."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Complains here, where the subcommand's own options are known, and not in the parser above."""
        namespace, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}{self._nearest(message)}", file=sys.stderr)
        raise SystemExit(USAGE_EXIT)

    def _nearest(self, message: str) -> str:
        choice = re.search(r"invalid choice: '([^']*)'", message)
        unknown = re.search(r"unrecognized arguments: (--?[^ =]+)", message)
        if choice:
            known = [c for action in self._actions if action.choices for c in map(str, action.choices)]
            found = difflib.get_close_matches(choice[1], known, 1, 0.5)
        elif unknown:
            found = difflib.get_close_matches(unknown[1], list(self._option_string_actions), 1, 0.5)
        else:
            found = []
        return f"\n  -> did you mean {found[0]}?" if found else ""


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers")
    return int(text)


def parser() -> Parser:
    top = Parser(prog="depin", description="Training cells on a Dask cluster of edge devices or cloud workers.")
    top.add_argument("--version", action="version", version=f"depin-nb {version('depin-nb')}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, *, json: bool = True, within: Any = commands) -> Parser:
        added: Parser = within.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if json:
            added.add_argument("--json", action="store_true", help="print JSON")
        return added

    add("hub", "run the hub in the foreground (see depin hub --help)", json=False)  # its arguments are read by hub/command.py
    up = add("up", "start the hub, if need be, and workers")
    up.add_argument(
        "backend", nargs="?", choices=BACKENDS, default="local", help="local: this machine's cores; depin: simulated edge devices"
    )
    up.add_argument("--workers", type=_count, metavar="N", help="how many (default: 2 local, 4 depin)")
    add("down", "stop the workers and the hub; everything stays in the journal", json=False)
    add("status", "show the hub, its workers, and the runs that are going on")
    scale = add("scale", "have N workers of one kind; those of other kinds stay")
    scale.add_argument("count", type=_count, metavar="N")
    scale.add_argument("--backend", choices=BACKENDS, default="local", help="which kind (default: local)")
    runs = add("runs", "list the runs of the journal, newest first").add_subparsers(dest="action", metavar="ACTION")
    for name, text in (
        ("check", "prove from the journal and the ledger that each iteration counts once and the money adds up"),
        ("checkpoints", "list the checkpoints of a run, which load in plain PyTorch"),
    ):
        add(name, text, within=runs).add_argument("run", metavar="RUN")
    share = add("share", "change a run's part in the devices while it goes on", within=runs)
    share.add_argument("run", metavar="RUN")
    share.add_argument("--weight", type=float, metavar="W", help="beside runs of weight 1, from 0.01 to 100")
    share.add_argument(
        "--priority", choices=PRIORITIES, help="high goes before normal before low, which keeps a tenth of the devices' time"
    )
    export = add("export", "write a run as a folder that another hub can take in", within=runs)
    export.add_argument("run", metavar="RUN")
    export.add_argument("folder", metavar="DIR", nargs="?", default=".", help="where the run's folder is made (default: here)")
    add("import", "take a run's folder in, so that it can be resumed here", within=runs).add_argument("folder", metavar="DIR")
    for name, text in (
        ("attach", "show a run until it ends; Ctrl-C leaves it running"),
        ("logs", "show what a detached run has printed so far"),
        ("stop", "end a run; it keeps the weights of its last merge"),
    ):
        added = add(name, text, json=name == "stop")
        without = {"attach": "the newest", "logs": "the newest detached one", "stop": "the one that is going on"}[name]
        added.add_argument("run", nargs="?", metavar="RUN", help=f"without it, {without}")
        if name == "logs":
            added.add_argument("--follow", action="store_true", help="keep printing until the run ends")
    info = add("run-info", "show one run: what it did, cost and learned")
    info.add_argument("run", metavar="RUN")
    ledger = add("ledger", "payouts of a run", json=False).add_subparsers(dest="ledger", metavar="ACTION", required=True)
    for name, text in (
        ("verify", "recompute a run's payouts from the chain and the receipts"),
        ("show", "list a run's receipts and payouts"),
    ):
        add(name, text, within=ledger).add_argument("run", metavar="RUN")
    add("doctor", "check Python, torch, distributed, ports, hub, journal and JupyterLab's extension")
    return top
