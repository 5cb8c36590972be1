"""What can be said after `%depin` and `%%depin`: one table, from which parsing, help, usage lines and completion are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from depin_nb.core.amount import parse as amount
from depin_nb.core.errors import UsageError

BACKENDS = ("local", "depin")
STRATEGIES = ("auto", "sync", "local")
DATA = ("auto", "whole", "samples", "worker")
RUN = "RUN"


@dataclass(frozen=True)
class Argument:
    """An argument: an option when `name` begins with `--`, else a position. `choices` are texts; `kind` turns the text into a value.

    `bare`: what an option stands for that is given without its value (None: it needs one).
    """

    name: str
    about: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    kind: Callable[[str], Any] = str
    default: Any = None
    required: bool = False
    flag: bool = False
    bare: str | None = None

    @property
    def is_option(self) -> bool:
        return self.name.startswith("--")

    @property
    def usage(self) -> str:
        shown = "|".join(self.choices) or self.metavar
        shown = shown if self.bare is None else f"[{shown}]"
        text = self.name if self.flag else f"{self.name} {shown}" if self.is_option else shown
        return text if self.required else f"[{text}]"


@dataclass(frozen=True)
class Command:
    """A subcommand of `%depin`, or of `%%depin` when `cell`."""

    name: str
    about: str
    arguments: tuple[Argument, ...] = ()
    cell: bool = False

    @property
    def usage(self) -> str:
        return " ".join([self._head, *(a.usage for a in self.arguments)])

    @property
    def brief(self) -> str:
        """The usage with many options left out."""
        return self.usage if len(self.arguments) <= 3 else f"{self._head} [options]"

    @property
    def _head(self) -> str:
        return f"{'%%' if self.cell else '%'}depin {self.name}"


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least` up. Raises UsageError."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= 1_000_000:
            raise UsageError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


def names(text: str) -> tuple[str, ...]:
    """A reader of names with commas between them. Raises UsageError."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or not all(part.isidentifier() for part in found):
        raise UsageError(f"{text!r} are not names with commas between them", hint="Such as --send api_key,token.")
    return found


_BACKEND = Argument("--backend", "which kind of worker", choices=BACKENDS)
_WORKERS = Argument("--workers", "how many workers", "N", kind=at_least(1))
_BUDGET = Argument("--budget", "what a run may spend at most, such as $0.10", "$X", kind=amount)
_RUN = Argument("run", "a run's id; without it, the run that is going on", RUN)
_NEWEST = Argument("run", "a run's id; without it, the newest", RUN)

COMMANDS = (
    Command(
        "up",
        "start the hub and workers: on this machine, or simulated edge devices",
        (Argument("backend", "local workers, or the fleet of edge devices", choices=BACKENDS), _WORKERS, _BUDGET),
    ),
    Command("status", "show the workers and the runs that are going on"),
    Command("scale", "have N workers of one kind", (Argument("count", "how many", "N", kind=at_least(0), required=True), _BACKEND)),
    Command("down", "stop the workers and the hub; everything stays in the journal"),
    Command("runs", "list the runs of the journal"),
    Command("attach", "show a run until it ends; the Stop button leaves it running", (_NEWEST,)),
    Command(
        "logs",
        "show what a detached run has printed",
        (_NEWEST, Argument("--follow", "go on until it ends", flag=True, default=False)),
    ),
    Command(
        "bind",
        "bring back what a detached run left: weights and names",
        (_NEWEST, Argument("--partial", "also of a run that failed or was stopped", flag=True, default=False)),
    ),
    Command("ledger", "check a run's payouts against the chain", (Argument("run", "a run's id; without it, the newest", RUN),)),
    Command("budget", "set what each run may spend at most", (Argument("amount", "such as $0.10", "$X", kind=amount, required=True),)),
    Command("pause", "give out no more leases", (_RUN,)),
    Command("resume", "go on", (_RUN,)),
    Command("stop", "end a run with the weights of its last merge", (_RUN,)),
    Command("debug", "look into the newest failure with the debugger: its iterations run again here, on copies"),
    Command(
        "train",
        "run this cell's training loop on the workers",
        (
            Argument("--strategy", "sync: a merge at every step; local: several steps between merges", choices=STRATEGIES, default="auto"),
            _BUDGET,
            Argument("--name", "a name for people", "NAME"),
            Argument("--dry-run", "only plan and estimate; nothing is spent", flag=True, default=False),
            Argument("--workers", "use at most N workers", "N", kind=at_least(1)),
            Argument("--inner-steps", "steps between merges (local)", "H", kind=at_least(1)),
            Argument("--bits", "how changes travel", choices=("4", "8", "32"), kind=int),
            Argument(
                "--data",
                "how the dataset travels: whole, only each lease's samples, or built by each worker from its own files",
                choices=DATA,
                default="auto",
            ),
            Argument("--send", "let names travel although they look like secrets", "NAME[,NAME]", kind=names, default=()),
            Argument("--detach", "return at once: a process beside the hub goes on; see attach, logs, bind", flag=True, default=False),
            Argument("--single", "run the whole cell, whatever it holds, on one worker", flag=True, default=False),
            Argument("--limit", "the most seconds that a cell may take with --single (default 3600)", "S", kind=at_least(1)),
            Argument("--resume", "go on with a run of this cell that was cut short; without RUN, the newest", RUN, bare=""),
        ),
        cell=True,
    ),
)


def command(name: str) -> Command | None:
    """The command of that name."""
    return next((c for c in COMMANDS if c.name == name), None)
