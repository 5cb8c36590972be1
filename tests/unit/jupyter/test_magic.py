"""What a line of `%depin` means: values, refusals with the nearest word, completions, and the calls that are made."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest
from IPython.core.completer import CompletionContext

import depin_nb
from depin_nb.core.amount import DPN, Amount
from depin_nb.core.errors import AmountError, NoHub, RefusedLoop, UsageError, VerificationError
from depin_nb.core.lease import StrategyConfig
from depin_nb.jupyter import magic
from depin_nb.jupyter.complete import depin_matcher
from depin_nb.jupyter.magic import DepinMagics
from depin_nb.jupyter.parser import parse
from depin_nb.jupyter.trouble import compact
from depin_nb.session import Plan


def test_lines_become_values() -> None:
    up = parse("up depin --workers 4 --budget $0.10  # the fleet", cell=False)
    assert (up.command.name, up.backend, up.workers, up.budget) == ("up", "depin", 4, Amount(100_000))
    assert parse("up", cell=False).backend is None
    assert parse('budget "25 DPN"', cell=False).amount == Amount(25_000_000, DPN)
    assert parse("budget 0", cell=False).amount == Amount(0)
    assert parse("scale 0 --backend=local", cell=False).count == 0
    train = parse("train --strategy local --bits 4 --inner-steps 20 --dry-run --name 'my run'", cell=True)
    assert (train.strategy, train.bits, train.inner_steps, train.dry_run, train.name, train.budget) == (
        "local",
        4,
        20,
        True,
        "my run",
        None,
    )
    assert parse("train", cell=True).strategy == "auto"
    assert parse("train", cell=True).quorum is None
    assert parse("train --strategy local --quorum 0.75", cell=True).quorum == 0.75


@pytest.mark.parametrize("line", ["", "  ", "help", "--help"])
def test_help_without_a_command(line: str) -> None:
    args = parse(line, cell=False)
    assert args.help
    assert args.command is None


def test_help_of_a_command_even_when_the_rest_is_wrong() -> None:
    args = parse("train --help --bits 99", cell=True)
    assert args.help
    assert args.command.name == "train"


@pytest.mark.parametrize(
    ("line", "cell", "message", "hint"),
    [
        ("staus", False, "no command 'staus'", "Did you mean status?"),
        ("up dpin", False, "can't be 'dpin'", "Did you mean depin?"),
        ("up --bugdet $0.10", False, "no option --bugdet", "Did you mean --budget? Usage: %depin up"),
        ("up --budget=", False, "not an amount", "$0.10"),
        ("up --workers", False, "expected one argument", "Usage: %depin up"),
        ("up --workers two", False, "'two' is not a whole number", ""),
        ("up --workers -1", False, "", ""),
        ("up --workers 0", False, "at least 1", ""),
        ("up local extra", False, "'extra'", "Usage: %depin up"),
        ("scale", False, "required", "Usage: %depin scale N"),
        ("status now", False, "'now'", "Usage: %depin status"),
        ("train", False, "cell magic", "%%depin train"),
        ("up", True, "for one line", "%depin up"),
        ("train --strategy sinc", True, "can't be 'sinc'", "Did you mean sync?"),
        ("train --quorum 0", True, "'0' is not a share", ""),
        ("train --quorum most", True, "'most' is not a share", ""),
        ("train --bits 5", True, "can't be '5'", "4 or 8 or 32"),
        ("train --bits four", True, "can't be 'four'", "4 or 8 or 32"),
        ("train --strat local", True, "no option --strat", "--strategy"),
        ("train --name 'open", True, "closing quotation", ""),
    ],
)
def test_refusals_say_what_was_meant(line: str, cell: bool, message: str, hint: str) -> None:
    with pytest.raises((UsageError, AmountError)) as caught:
        parse(line, cell=cell)
    assert message in caught.value.message
    assert hint in caught.value.hint


def complete(text: str) -> list[str]:
    lines = text.split("\n")
    context = CompletionContext(token="", full_text=text, cursor_position=len(lines[-1]), cursor_line=len(lines) - 1, limit=None)
    return [c.text for c in depin_matcher(context)["completions"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("%depin s", ["status", "scale", "stop", "share"]),
        ("%%depin ", ["train"]),
        ("%depin up ", ["local", "depin", "--workers", "--budget"]),
        ("%depin up local --b", ["--budget"]),
        ("%depin scale 2 --backend d", ["depin"]),
        ("%%depin train --strategy ", ["auto", "sync", "local", "sparse"]),
        ("%%depin train --bits ", ["1", "4", "8", "32"]),
        ("%%depin train --dry-run --na", ["--name"]),
        ("x = 1\n%depin u", ["up"]),
        ("x = 1\n%%depin t", []),
        ("%depin nonsense ", []),
        ("%depint ", []),
        ("depin up ", []),
    ],
)
def test_completion(text: str, words: list[str]) -> None:
    assert complete(text) == words


def test_errors_are_short() -> None:
    error = RefusedLoop("the loop awaits", line=3, source="for x in y:\n    await z", reason="await")
    error.__cause__ = ValueError("inner")
    lines = compact(error, colour=False)
    assert lines[0] == "RefusedLoop: the loop awaits"
    assert lines[1] == "    line 3: for x in y:"
    assert lines[-2].startswith("  -> Run the cell without")
    assert lines[-1] == "  (from ValueError: inner)"


# --- the calls. The session and its wiring are recorded here; the functional tests drive the real ones. ---------------


@dataclass(frozen=True)
class TrainOptions:
    strategy: str
    budget: Amount | None
    name: str | None
    workers: int | None
    inner_steps: int | None
    bits: int | None
    resume: str | None = None
    send: tuple[str, ...] = ()
    data: str = "auto"
    quorum: float | None = None
    weight: float | None = None
    priority: str | None = None


class RecordedSession:
    """Keeps each call."""

    def __init__(self, status: Any) -> None:
        self.status = status
        self.calls: list[tuple[Any, ...]] = []
        self.budget: Amount | None = None
        self.raises: BaseException | None = None

    def workers(self):
        return list(self.status.devices)

    def statuses(self):
        return [self.status]

    def scale(self, *args):
        self.calls.append(("scale", *args))

    def control(self, *args):
        self.calls.append(("control", *args))

    def train_cell(self, source, namespace, *, shell, options, on_status):
        self.calls.append(("train", source, namespace, options))
        on_status(self.status)
        if self.raises:
            raise self.raises
        return types.SimpleNamespace(status=self.status, run_id="run-7f3c")

    def plan_cell(self, source, namespace, *, shell, options):
        self.calls.append(("plan", source, options))
        where = "the cell, line 1: for x in y"
        return Plan(where, StrategyConfig(), "alone", 1, 45, 10, 0.1, 1, 2, 3, 4, ("log",), ("model",), ("<so>",), ())


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, sample) -> RecordedSession:
    recorded = RecordedSession(sample())
    wiring = types.ModuleType("depin_nb.wiring")
    wiring.up = lambda *args: recorded.calls.append(("up", *args)) or recorded
    wiring.current = lambda: recorded
    wiring.down = lambda: recorded.calls.append(("down",))
    wiring.runs = lambda: [{"run_id": "run-7f3c", "state": "running"}, {"run_id": "run-11aa", "state": "finished"}]
    module = types.ModuleType("depin_nb.session")
    module.TrainOptions = TrainOptions
    for name, value in (("wiring", wiring), ("session", module)):
        monkeypatch.setitem(sys.modules, f"depin_nb.{name}", value)
        monkeypatch.setattr(depin_nb, name, value, raising=False)
    return recorded


class Handle:
    def __init__(self, shown: list[Any]) -> None:
        self.shown = shown

    def update(self, what: Any) -> None:
        self.shown[-1] = what


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    pages: list[Any] = []
    monkeypatch.setattr(magic, "_display", lambda what: pages.append(what) or Handle(pages))
    return pages


@pytest.fixture
def magics() -> DepinMagics:
    found = DepinMagics(None)
    found.shell = types.SimpleNamespace(user_ns={"model": 1}, kernel=None)  # type: ignore[assignment]
    return found


def test_up_starts_and_shows_the_workers(session, shown, magics) -> None:
    magics.depin("up depin --workers 4 --budget $0.10")
    assert session.calls == [("up", "depin", 4, Amount(100_000))]
    assert len(shown) == 1
    assert "phone-1 (simulated)" in shown[0].text
    assert "0.40 DPN/TFLOP quoted" in shown[0].text


def test_lines_call_the_session(session, shown, magics) -> None:
    for line in ("scale 3 --backend local", "pause", "resume run-1", "stop", "budget $0.50", "down"):
        magics.depin(line)
    assert session.calls == [
        ("scale", 3, "local"),
        ("control", None, "pause"),
        ("control", "run-1", "resume"),
        ("control", None, "stop"),
        ("control", "run-7f3c", "budget", Amount(500_000)),
        ("down",),
    ]
    assert session.budget == Amount(500_000)


def test_status_and_runs_are_shown(session, shown, magics) -> None:
    magics.depin("status")
    magics.depin("runs")
    assert "Workers" in shown[0].text
    assert "412 / 600" in shown[1].text
    assert "run-11aa" in shown[2].text
    assert complete("%depin stop ") == ["run-7f3c", "run-11aa"]


def test_train_passes_the_cell_on_and_keeps_the_summary(session, magics, capsys) -> None:
    magics.depin("train --strategy local --bits 4 --budget $0.20", "for x, y in loader: ...")
    kind, source, namespace, options = session.calls[0]
    assert (kind, source) == ("train", "for x, y in loader: ...")
    assert namespace is magics.shell.user_ns
    assert options == TrainOptions("local", Amount(200_000), None, None, None, 4)
    assert "run-7f3c digits" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt(), "interrupted"), (ValueError("bad"), "failed"), (NoHub("no"), "failed")])
def test_what_ends_a_run_ends_the_cell_too(session, magics, capsys, error: BaseException, word: str) -> None:
    session.raises = error
    with pytest.raises(type(error)):
        magics.depin("train", "pass")
    assert f"run-7f3c digits: {word}" in capsys.readouterr().out


def test_a_dry_run_only_plans(session, shown, magics) -> None:
    magics.depin("train --dry-run", "pass")
    assert [c[0] for c in session.calls] == ["plan"]
    assert "the cell, line 1: for x in y -> 45 iterations on 1 worker" in shown[0].text
    assert "&lt;so&gt;" in shown[0].html
    assert "Nothing was spent." in shown[0].text


def test_the_ledger_is_shown_and_fails_when_it_does_not_agree(session, shown, magics) -> None:
    from depin_nb.ledger.verify import VerifyReport, VerifyRow

    def report(by_chain: int) -> VerifyReport:
        rows = (VerifyRow("phone-1", "W" * 44, 3, 1_000_000, by_chain, ("S" * 88,)),)
        ok = by_chain == 1_000_000
        return VerifyReport("run-7f3c", ok, rows, "ab" * 32, () if ok else ("phone-1 was paid too much",), "V" * 44, 0, "embedded", True)

    depin_nb.wiring.verify = lambda run_id: report(1_000_000)
    magics.depin("ledger run-7f3c")
    assert "agree" in shown[0].text
    depin_nb.wiring.verify = lambda run_id: report(2_000_000)
    with pytest.raises(VerificationError):
        magics.depin("ledger run-7f3c")
    assert "phone-1 was paid too much" in shown[1].text


def test_every_command_has_its_method() -> None:
    from depin_nb.jupyter.commands import COMMANDS

    assert all(callable(getattr(DepinMagics, f"_{c.name}")) for c in COMMANDS)
