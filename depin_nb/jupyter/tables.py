"""What the magics show that isn't a run: help, workers, the list of runs, a check of the ledger. Each as HTML and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import DPN, Amount
from depin_nb.core.status import Device

from .commands import COMMANDS, Command
from .figures import clip, count, duration, short
from .html import badge
from .style import style
from .text import WIDTH, table, wrapped
from .view import plain_name

if TYPE_CHECKING:
    from depin_nb.hub.records.checking import CheckReport
    from depin_nb.hub.versions.checkpoint_files import Checkpoint
    from depin_nb.ledger.verify import VerifyReport
    from depin_nb.session import Plan, Run


@dataclass(frozen=True)
class Shown:
    """HTML for a notebook, text for a terminal."""

    html: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, HTML after it, and the whole of what is shortened."""

    text: str
    after: str = ""
    title: str = ""


def help_text(only: Command | None = None) -> Shown:
    """All commands, or one with its arguments."""
    if only is None:
        rows = [[Cell(c.brief), Cell(c.about)] for c in COMMANDS]
        return card("depin", rows, ["Command", "What it does"], note="Add --help to a command for its options.", left=2, prose=True)
    rows = [[Cell(a.form), Cell(a.about)] for a in only.arguments]
    return card(f"{only.brief}: {only.about}", rows, ["Argument", "What it is"], left=2, prose=True)


def workers(devices: Sequence[Device], title: str = "Workers") -> Shown:
    """The workers with kind, price and the *simulated* label."""
    rows = [
        [
            Cell(plain_name(d) + (" (simulated)" if d.simulated else "")),
            Cell(d.kind),
            Cell(d.moving or d.state),
            Cell(f"{d.price} quoted" if d.price else "-"),
            Cell(short(d.wallet) or "-", title=d.wallet),
        ]
        for d in sorted(devices, key=lambda d: (d.kind, len(d.name), d.name))  # local-2 before local-10
    ]
    return card(title, rows, ["Worker", "Kind", "State", "Price", "Wallet"], note="" if rows else "No workers: `%depin scale 2`.", left=5)


def runs(rows: Iterable[Mapping[str, Any]]) -> Shown:
    """The journal's runs, newest first; `rows` as `wiring.runs()` gives them."""
    cells = [_run(row) for row in rows]
    heads = ["Run", "Name", "State", "Strategy", "Started", "Took", "Iterations", "Spent, metered"]
    note = "" if cells else "No runs yet. Put `%%depin train` on top of a cell with a training loop."
    return card("Runs", cells, heads, note=note, left=5)


def _run(row: Mapping[str, Any]) -> list[Cell]:
    summary = row.get("summary") or {}
    spent = summary.get("spent")
    started, ended = row.get("started_at"), row.get("ended_at")
    done = summary.get("iterations_done")
    return [
        Cell(str(row.get("run_id", ""))),
        Cell(clip(str(row.get("name") or ""), 24)),
        Cell(str(row.get("state", "")) + (", can be resumed" if row.get("resumable") else "")),
        Cell(clip(str(row.get("strategy") or "").partition(":")[0], 20)),
        Cell(datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M") if started else "-"),
        Cell(duration(ended - started) if started and ended else "-"),
        Cell(count(done) if isinstance(done, int) else "-"),
        Cell(Amount.from_dict(spent).text() if isinstance(spent, dict) else "-"),
    ]


def plan(made: Plan) -> Shown:
    """What a run would do, and what it would take here and elsewhere, each figure with its tag."""
    facts = card("Plan", [[Cell(heading), Cell(sentence)] for heading, sentence in made.facts()], ["", ""], left=2, prose=True)
    sent = _leaving(made)
    rows = [
        [
            Cell(row.name + (" (simulated)" if row.simulated else "")),
            Cell(duration(row.time_s)),
            Cell(row.cost.amount.text()),
            Cell(row.tokens.amount.text() if row.tokens.amount else "-"),
            Cell(f"{row.price_per_h.amount.text()}/h" if row.price_per_h is not None else "-", title=row.dated),
        ]
        for row in made.rows
    ]
    heads = ["Where", "Time, estimated", "Cost, estimated", "Tokens, estimated", "List price, quoted"]
    dated = f" List prices of {made.rows[0].dated}." if made.rows else ""
    table = card("One pass of this loop, here and elsewhere", rows, heads, note=f"Nothing was spent.{dated}", left=1)
    return Shown(facts.html + sent.html + table.html, "\n".join(part.text for part in (facts, sent, table) if part.text))


def _leaving(made: Plan) -> Shown:
    """What leaves this machine, by name: the largest first, many small ones summed up."""
    items = made.items()
    if not items:
        return Shown("", "")
    rows = [[Cell(part) for part in item] for item in items]
    note = "To each worker once; a rerun sends only what has changed."
    return card("What leaves this machine", rows, ["Name", "Kind", "Size"], note=note, left=2)


def detached(run: Run) -> Shown:
    """A run that was just sent off, and what can be done with it."""
    rows = [
        [Cell(f"%depin attach {run.run_id}"), Cell("shows it until it ends")],
        [Cell(f"%depin logs {run.run_id} --follow"), Cell("what it prints")],
        [Cell(f"%depin stop {run.run_id}"), Cell("ends it with the weights of its last merge")],
        [Cell(f"%depin bind {run.run_id}"), Cell("waits for it, then brings its weights and names back here")],
    ]
    note = "This kernel may end. In a script: depin_nb.attach(...).wait().bind()."
    return card(f"{run.run_id} {run.status.name} goes on beside the hub", rows, ["", ""], note=note, left=2)


def checked(report: CheckReport) -> Shown:
    """What a check of a run against its own journal found."""
    rows = [
        [
            Cell(str(row.number)),
            Cell(", ".join(row.runs)),
            Cell(row.closed or "-"),
            Cell(count(row.merged) + (f"/{count(row.total)}" if row.total is not None else "")),
            Cell(count(row.open)),
            Cell(count(row.leases)),
            Cell(count(row.merges)),
        ]
        for row in report.passes
    ]
    sums = f"{count(report.receipts)} receipts, {Amount(report.units_dpn, DPN).text()} metered."
    verdict = f"Proven: each iteration counts once, the books add up. {sums}"
    if report.problems:
        named = (f"{p.where}: {p.what}." for p in report.problems[:20])
        verdict = " ".join([f"{len(report.problems)} PROBLEM{'S' if len(report.problems) > 1 else ''}:", *named])
    heads = ["Pass", "Runs", "Closed", "Iterations merged", "Open", "Leases", "Merges"]
    return card(f"Check of {report.run_id}", rows, heads, note=verdict, left=3)


def checkpoints(run_id: str, found: Sequence[Checkpoint]) -> Shown:
    """A run's checkpoints."""
    rows = [
        [
            Cell(str(c.version)),
            Cell(str(c.path)),
            Cell(str(c.told.entry)),
            Cell(count(c.told.iteration)),
            Cell("-" if c.loss is None else f"{c.loss:.4g}"),
            Cell(datetime.fromtimestamp(c.told.at).strftime("%Y-%m-%d %H:%M")),
        ]
        for c in found
    ]
    note = f'`depin_nb.attach("{run_id}").checkpoint(best=True)` is the one of the lowest loss.' if rows else "No checkpoints yet."
    return card(f"Checkpoints of {run_id}", rows, ["Version", "Folder", "Entry", "Iteration", "Loss", "Written"], note=note, left=2)


def payouts(report: VerifyReport) -> Shown:
    """What a check of a run's payouts found: what the receipts say beside what the chain says."""
    rows = [
        [
            Cell(row.worker_id),
            Cell(short(row.wallet), title=row.wallet),
            Cell(", ".join(short(s) for s in row.signatures) or "-", title=" ".join(row.signatures)),
            Cell(count(row.receipts)),
            Cell(Amount(row.units_by_receipts, DPN).text()),
            Cell(Amount(row.units_by_chain, DPN).text()),
        ]
        for row in report.rows
    ]
    verdict = "The chain and the receipts agree." if report.ok else " ".join(["They DON'T agree:", *report.problems])
    chain = report.chain + (", simulated value" if report.simulated and "simulated" not in report.chain else "")
    note = f"{verdict} Merkle root {report.merkle_root}. Chain: {chain}."
    heads = ["Worker", "Wallet", "Signatures", "Receipts", "By receipts, metered", "By chain, settled"]
    return card(f"Payouts of {report.run_id}", rows, heads, note=note, left=3)


def card(title: str, rows: Sequence[Sequence[Cell]], heads: Sequence[str], *, note: str = "", left: int = 1, prose: bool = False) -> Shown:
    """A titled table; the first `left` columns to the left, the others to the right. `prose`: the last column wraps."""
    cells = [[c.text for c in row] for row in rows]
    lines = table(heads, _narrowed(cells, heads) if prose else cells, left) if rows else []
    text = [*wrapped(title, rest="  "), *("  " + line for line in lines if line)]
    if note:
        text += wrapped(note, "  ")

    def attributes(i: int) -> str:
        return " class=depin-l" if i < left else ""

    head = "".join(f"<th{attributes(i)}>{escape(h)}</th>" for i, h in enumerate(heads))
    body = "".join(f"<tr>{''.join(_td(c, attributes(i)) for i, c in enumerate(row))}</tr>" for row in rows)
    kind = "depin-table depin-prose" if prose else "depin-table"
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    grid = f'<div class="depin-scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'
    foot = f'<div class="depin-foot"><span>{escape(note)}</span></div>' if note else ""
    html = f'{style()}<div class="depin"><div class="depin-head"><b>{escape(title)}</b></div>{grid if rows else ""}{foot}</div>'
    return Shown(html, "\n".join(text))


def _narrowed(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> list[list[str]]:
    """The rows with the last column wrapped, so that a line keeps to `WIDTH`; a row's further lines have only that column."""
    before = len(heads) - 1
    used = 2 + sum(2 + max(len(row[i]) for row in (heads, *rows)) for i in range(before))
    narrowed = []
    for row in rows:
        first, *more = textwrap.wrap(row[-1], max(30, WIDTH - used), break_on_hyphens=False) or [""]
        narrowed += [[*row[:-1], first], *([""] * before + [line] for line in more)]
    return narrowed


def _td(cell: Cell, attributes: str) -> str:
    simulated = cell.text.endswith(" (simulated)")
    text = escape(cell.text.removesuffix(" (simulated)")) + badge(simulated) + cell.after
    title = f' title="{escape(cell.title)}"' if cell.title else ""
    return f"<td{attributes}{title}>{text}</td>"
