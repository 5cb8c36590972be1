"""A `Status` as plain text: one line that is rewritten in a terminal, and a block that stays. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from depin_nb.core.status import Status

from .html import MOST_SIGNATURES, Payout, payouts_of
from .view import View, Worker, view

BAR_WIDTH = 16
WIDTH = 100  # of lines that stay; a browser wraps for itself
EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(fraction: float | None, width: int = BAR_WIDTH) -> str:
    """A progress bar of `width` characters, in eighths of one."""
    eighths = round(max(0.0, min(1.0, fraction or 0.0)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[part] if part else "")).ljust(width)


def text_line(status: Status, width: int | None = None) -> str:
    """A run in one line; with `width`, whole parts are left off from the end until it fits."""
    v = view(status)
    parts = [f"{v.run_id} {v.label}", f"▕{bar(v.fraction)}▏{v.percent} {v.progress}".replace(" iterations", "")]
    parts.append(f"loss {v.learning[0].value}")
    parts.append(f"{v.money[0].value} {v.money[0].tag}" + (f" of {status.budget.text()}" if status.budget is not None else ""))
    parts.extend(f"{s.value} {s.label} {s.tag}" for s in v.times[1:])
    parts.append(f"{v.tokens[0].value} {v.tokens[0].tag}")
    parts.append(f"{v.learning[1].value} samples/s")
    parts.append(f"{len(v.workers)} {'simulated ' if v.simulated else ''}worker{'' if len(v.workers) == 1 else 's'}")
    if width is not None:
        while len(parts) > 1 and len(" · ".join(parts)) > width:
            parts.pop()
        return " · ".join(parts)[:width]
    return " · ".join(parts)


def text_block(status: Status, notices: Sequence[str] = ()) -> str:
    """A run in a few aligned lines, in the same order as the HTML."""
    return "\n".join(_block(view(status, notices)))


def summary_text(status: Status, payouts: Sequence[Payout] | None = None, notices: Sequence[str] = ()) -> str:
    """What a terminal keeps of a run that ended: the block and who was paid (from the status itself unless `payouts` is given)."""
    lines = _block(view(status, notices))
    paid = payouts_of(status) if payouts is None else payouts
    if paid:
        rows = [[p.name + (" (simulated)" if p.simulated else ""), p.wallet, p.amount.text() + " settled"] for p in paid]
        lines += ["", *table(["paid to", "wallet", "amount"], rows)]
    return "\n".join(lines)


def wrapped(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most `WIDTH` characters: `first` before the first, `rest` (blanks as long as `first`) before the others."""
    rest = " " * len(first) if rest is None else rest
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def headline(status: Status) -> str:
    """What a terminal shows when a run starts: the plan's first line."""
    v = view(status)
    return "\n".join(wrapped(f"{v.run_id}: {v.headline}", rest="  ")) if v.headline else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Aligned lines; the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        placed = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(placed).rstrip()

    return [line(head), *(line(row) for row in rows)]


def _block(v: View) -> list[str]:
    times = ", ".join(f"{s.value} {s.label} ({s.tag})" for s in v.times)
    lines = [f"{v.run_id} {v.title}".rstrip() + f": {v.label}" + (" (simulated devices)" if v.simulated else "")]
    lines += wrapped(v.headline, "  ")
    lines.append(f"  ▕{bar(v.fraction, 30)}▏ {v.percent} {v.progress}, {times}")
    lines.append("  " + ", ".join(f"{s.label.lower()} {s.value} ({s.tag})" for s in v.learning))
    lines.append("  " + ", ".join(f"{s.label.lower()} {s.value} ({s.tag})" for s in (*v.money, *v.tokens)))
    if v.bar is not None:
        lines.append(f"  {v.bar.text}")
    if v.workers:
        head = ["worker", "state", "iterations", "samples/s", "earned (metered)", "paid (settled)"]
        lines += ["  " + line for line in table(head, [_row(w) for w in v.workers])]
    lines.append("  " + ", ".join(f"{name} {text}" for name, text in v.details if text))
    lines += [f"  signature {whole}" for _, whole in v.signatures[:MOST_SIGNATURES]]
    if len(v.signatures) > MOST_SIGNATURES:
        lines.append(f"  and {len(v.signatures) - MOST_SIGNATURES} more")
    for notice in v.notices:
        lines += wrapped(notice, "  note: ")
    return lines


def _row(w: Worker) -> list[str]:
    return [w.name + (" (simulated)" if w.simulated else ""), w.state, w.iterations, w.rate, w.earned, w.paid]
