"""What can be said after `%depin` and `%%depin`: one table, from which parsing, help, usage lines and completion are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from depin_nb.core.amount import parse as amount
from depin_nb.core.errors import UsageError

BACKENDS = ("local", "depin")
STRATEGIES = ("auto", "sync", "local", "sparse")
PRIORITIES = ("high", "normal", "low")
DATA = ("auto", "whole", "samples", "worker")
RUN = "RUN"
RUN_ACTIONS = ("check", "checkpoints", "export", "import")
BRIEF = 40  # characters of a usage in the list of commands


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
        return self.form if self.required else f"[{self.form}]"

    @property
    def form(self) -> str:
        """How it is written, needed or not."""
        shown = "|".join(self.choices) or self.metavar
        shown = shown if self.bare is None else f"[{shown}]"
        return self.name if self.flag else f"{self.name} {shown}" if self.is_option else shown


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
        """The usage; its options summed up when it is long, all of it when it is longer."""
        places = "".join(f" {a.usage}" for a in self.arguments if not a.is_option)
        return next((u for u in (self.usage, f"{self._head}{places} [options]") if len(u) <= BRIEF), f"{self._head} ...")

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


def fraction(text: str) -> float:
    """A reader of shares of a whole: above 0, at most 1. Raises UsageError."""
    value = _number(text)
    if not 0 < value <= 1:
        raise UsageError(f"{text!r} is not a share", hint="It is above 0 and at most 1, such as 0.5.")
    return value


def weight(text: str) -> float:
    """A reader of weights. Raises UsageError."""
    value = _number(text)
    if not 0.01 <= value <= 100:
        raise UsageError(f"{text!r} is not a weight", hint="It is a number from 0.01 to 100; 1 is usual.")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    return value


def names(text: str) -> tuple[str, ...]:
    """A reader of names with commas between them. Raises UsageError."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or not all(part.isidentifier() for part in found):
        raise UsageError(f"{text!r} are not names with commas between them", hint="Such as --send api_key,token.")
    return found


_BACKEND = Argument("--backend", "which kind of worker", choices=BACKENDS)
_WORKERS = Argument("--workers", "how many workers", "N", kind=at_least(1))
_BUDGET = Argument("--budget", "the most that a run may spend, such as $0.10", "$X", kind=amount)
_RUN = Argument("run", "a run's id; without it, the run that is going on", RUN)
_WEIGHT = Argument("--weight", "its part in devices that several runs want, beside runs of weight 1", "W", kind=weight)
_PRIORITY = Argument("--priority", "high goes before normal before low, which keeps a tenth of the devices' time", choices=PRIORITIES)
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
    Command(
        "runs",
        "list the runs; check, export or import one",
        (
            Argument(
                "action",
                "check: prove that each iteration counts once and the money adds up; checkpoints: list them;"
                " export, import: carry a run to another hub as a folder",
                choices=RUN_ACTIONS,
            ),
            Argument("run", "a run's id; without it, the newest; for import: the folder", RUN),
            Argument("folder", "for export: where the run's folder is made", "DIR", default="."),
        ),
    ),
    Command("attach", "show a run until it ends; interrupting the cell leaves the run alone", (_NEWEST,)),
    Command(
        "logs",
        "show what a detached run has printed so far",
        (_NEWEST, Argument("--follow", "keep printing until it ends", flag=True, default=False)),
    ),
    Command(
        "bind",
        "wait for a detached run, then bring its weights and names back into this notebook",
        (_NEWEST, Argument("--partial", "take what there is also when the run failed or was stopped", flag=True, default=False)),
    ),
    Command("ledger", "check a run's payouts against the chain", (Argument("run", "a run's id; without it, the newest", RUN),)),
    Command("budget", "set the most that each run may spend", (Argument("amount", "such as $0.10", "$X", kind=amount, required=True),)),
    Command("pause", "pause a run: the workers finish what they have and get nothing new", (_RUN,)),
    Command("resume", "let a paused run go on", (_RUN,)),
    Command("stop", "end a run; the model keeps the weights of the last merge", (_RUN,)),
    Command("share", "change a run's part in the devices while it goes on", (_RUN, _WEIGHT, _PRIORITY)),
    Command("debug", "open the debugger at the newest failure: its iterations run again here, on copies"),
    Command(
        "train",
        "run this cell's training loop on the workers",
        (
            Argument(
                "--strategy",
                "sync: the workers merge after every step; local: each takes several steps between merges; sparse: as local, but sends "
                "only the largest changes, for thin links and long runs; auto chooses",
                choices=STRATEGIES,
                default="auto",
            ),
            _BUDGET,
            Argument("--name", "what the run is called in lists", "NAME"),
            Argument(
                "--dry-run",
                "show what would be done, sent and paid, here and elsewhere; nothing runs on a worker",
                flag=True,
                default=False,
            ),
            Argument("--workers", "use at most N workers", "N", kind=at_least(1)),
            Argument("--inner-steps", "with --strategy local or sparse: steps between merges", "H", kind=at_least(1)),
            Argument(
                "--bits",
                "bits for each number of a change on its way to the hub: fewer are faster and coarser",
                choices=("1", "4", "8", "32"),
                kind=int,
            ),
            Argument(
                "--quorum",
                "with --strategy local or sparse: share of a round with which a merge goes ahead without silent and late workers"
                " (default 0.5; 1 waits for all)",
                "Q",
                kind=fraction,
            ),
            Argument(
                "--data",
                "how the dataset travels: whole and once, only the samples of each lease, or built by each worker from its own files",
                choices=DATA,
                default="auto",
            ),
            _WEIGHT,
            _PRIORITY,
            Argument("--send", "names that may travel although they look like secrets", "NAME[,NAME]", kind=names, default=()),
            Argument(
                "--detach",
                "return at once; the cell goes on in a process beside the hub: see %depin attach, logs, stop, bind",
                flag=True,
                default=False,
            ),
            Argument("--single", "run the whole cell, whatever it holds, on one worker; nothing is split", flag=True, default=False),
            Argument("--limit", "with --single: the most seconds that the cell may take (default 3600)", "S", kind=at_least(1)),
            Argument("--resume", "continue a run of this cell that was cut short; without RUN, the newest", RUN, bare=""),
        ),
        cell=True,
    ),
)


def command(name: str) -> Command | None:
    """The command of that name."""
    return next((c for c in COMMANDS if c.name == name), None)
