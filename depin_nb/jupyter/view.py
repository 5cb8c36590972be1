"""A `Status` as what is shown of it: every text final, every length between 0 and 1. HTML, text and panel are drawn from this alone. Pure.

In reading order: is it alive, is it learning, can I afford it, who does the work, what else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depin_nb.core.amount import Amount, Figure, Tag
from depin_nb.core.status import Device, Status

from .curve import Curve, curve
from .figures import clip, count, duration, number, percent, rate, short, size

WARN_AT = 0.8  # of the budget: DESIGN section 7
LANE_WINDOW_S = 60.0  # what the hub keeps of a device's lane
MOST_SPANS = 240  # over all lanes, so that sixteen workers stay under 20 kB (issue's item 6)
MOST_SPANS_ENDED = 96  # what stays below the cell has the payouts beside
MOST_NOTICES = 6
MOST_HEADLINE = 240
MOST_PLAN = 1000
SPAN_STATES = ("work", "send", "wait", "lost")

LABELS = {
    "planning": "planning",
    "running": "running",
    "paused": "paused",
    "stopping": "stopping…",
    "waiting": "waiting for its notebook",
    "finished": "finished",
    "interrupted": "interrupted",
    "stopped": "stopped",
    "budget": "stopped at its budget",
    "failed": "failed",
}
TONES = {
    "paused": "still",
    "waiting": "still",
    "finished": "done",
    "interrupted": "still",
    "stopped": "still",
    "budget": "bad",
    "failed": "bad",
}


@dataclass(frozen=True)
class Stat:
    """One figure: what it is, the figure, and where it comes from (a `Tag`'s word)."""

    label: str
    value: str
    tag: str
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """The budget bar, as fractions of the cap: `spent`, `reserved` after it, and the warning's mark."""

    spent: float
    reserved: float
    mark: float
    warn: bool
    cap: str
    text: str


@dataclass(frozen=True)
class Worker:
    """One worker's lane; `spans`: (from, to, state) as fractions of the shown window."""

    name: str
    kind: str
    simulated: bool
    state: str
    spans: tuple[tuple[float, float, str], ...]
    iterations: str
    rate: str
    earned: str
    paid: str
    price: str
    wallet: str


@dataclass(frozen=True)
class View:
    """All that a display of one run shows."""

    run_id: str
    title: str
    headline: str  # which loop, how many iterations on how many workers, strategy and why, as far as a few lines hold it
    plan: str  # the same, whole
    state: str
    label: str
    tone: str
    active: bool
    simulated: bool
    fraction: float | None
    percent: str
    progress: str
    times: tuple[Stat, ...]
    learning: tuple[Stat, ...]
    curve: Curve | None
    money: tuple[Stat, ...]
    bar: Bar | None
    tokens: tuple[Stat, ...]
    workers: tuple[Worker, ...]
    window: str
    details: tuple[tuple[str, str], ...]
    notices: tuple[str, ...]
    signatures: tuple[tuple[str, str], ...]  # (shortened, whole)


def view(status: Status, notices: Sequence[str] = ()) -> View:
    """What is shown of `status`; `notices` are the display's own, after the run's."""
    fraction = status.fraction
    said = (*status.notices, *notices)
    hidden = len(said) - MOST_NOTICES
    shown = tuple(clip(n, 200) for n in said[-MOST_NOTICES:])
    plan = clip(", ".join(part for part in (status.where, status.strategy) if part), MOST_PLAN)
    return View(
        run_id=status.run_id,
        title=_title(status),
        headline=_clauses(plan, MOST_HEADLINE),
        plan=plan,
        state=status.state,
        label=LABELS.get(status.state, clip(status.state, 30)),
        tone=TONES.get(status.state, "live"),
        active=not status.ended,
        simulated=status.simulated,
        fraction=None if fraction is None else round(fraction, 4),
        percent=percent(fraction),
        progress=_progress(status),
        times=_times(status),
        learning=_learning(status),
        curve=curve(status.loss),
        money=_money(status),
        bar=budget_bar(status),
        tokens=(
            Stat("Tokens accrued", status.tokens_accrued.text(), Tag.METERED.value),
            Stat("Tokens paid", status.tokens_paid.text(), Tag.SETTLED.value),
        ),
        workers=tuple(worker(d, status.elapsed_s, most_spans(status)) for d in status.devices),
        window=f"last {duration(min(LANE_WINDOW_S, max(status.elapsed_s, 1.0)))}",
        details=_details(status),
        notices=((f"{hidden} earlier notices", *shown) if hidden > 0 else shown),
        signatures=tuple((short(s), s) for s in status.signatures),
    )


def _clauses(text: str, most: int) -> str:
    """The text, or as many of its whole clauses as fit."""
    if len(text) <= most:
        return text
    end = max(text.rfind(mark, 0, most) for mark in (", ", "; "))
    return text[:end] + " …" if end > most // 2 else clip(text, most)


def _title(status: Status) -> str:
    """The run's name, where it says more than its id and the headline do."""
    name = clip(status.name, 60)
    return "" if name == status.run_id or name.removesuffix("…") in status.where else name


def plain_name(device: Device) -> str:
    """The device's name without the words that its badge says."""
    return clip(device.name.replace("(simulated)", "").strip() if device.simulated else device.name, 32)


def most_spans(status: Status) -> int:
    """How many spans each lane may have."""
    return max(4, (MOST_SPANS_ENDED if status.ended else MOST_SPANS) // max(len(status.devices), 1))


def worker(device: Device, elapsed_s: float, most: int) -> Worker:
    """One worker's row with at most `most` spans."""
    return Worker(
        name=plain_name(device),
        kind=device.kind,
        simulated=device.simulated,
        state=device.moving or device.state,
        spans=spans(device.lane, elapsed_s, most),
        iterations=count(device.iterations),
        rate=rate(device.samples_per_s),
        earned=device.earned.text(),
        paid=device.paid.text(),
        price=device.price,
        wallet=device.wallet,
    )


def spans(lane: Sequence[tuple[float, float, str]], elapsed_s: float, most: int) -> tuple[tuple[float, float, str], ...]:
    """A lane's spans of the last `LANE_WINDOW_S` as fractions of it, the newest at 1, neighbours of one state joined.

    When these are more than `most`, the window is cut into `most` equal parts, each shown in the state that fills most of it.
    """
    end = max(elapsed_s, 1.0)
    start = max(0.0, end - LANE_WINDOW_S)
    seen = [
        (max(0.0, (a - start) / (end - start)), min(1.0, (b - start) / (end - start)), state)
        for a, b, state in lane
        if state in SPAN_STATES
    ]
    joined = _joined(seen)
    return joined if len(joined) <= most else _joined(_coarse(joined, most))


def _joined(lane: Sequence[tuple[float, float, str]]) -> tuple[tuple[float, float, str], ...]:
    joined: list[tuple[float, float, str]] = []
    for a, b, state in lane:
        low, high = round(a, 3), round(b, 3)
        if not 0 <= low < high <= 1:
            continue
        if joined and joined[-1][2] == state and abs(low - joined[-1][1]) <= 0.004:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]), state)
        else:
            joined.append((low, high, state))
    return tuple(joined)


def _coarse(lane: Sequence[tuple[float, float, str]], parts: int) -> list[tuple[float, float, str]]:
    filled: list[dict[str, float]] = [{} for _ in range(parts)]
    for a, b, state in lane:
        for i in range(int(a * parts), min(parts, int(b * parts) + 1)):
            share = min(b, (i + 1) / parts) - max(a, i / parts)
            if share > 0:
                filled[i][state] = filled[i].get(state, 0.0) + share
    return [(i / parts, (i + 1) / parts, max(of, key=lambda s: of[s])) for i, of in enumerate(filled) if of]


def budget_bar(status: Status) -> Bar | None:
    """The bar of `status.budget`; None without a budget, or where spending is in another currency."""
    cap, spent = status.budget, status.spent.amount
    if cap is None or cap.currency.code != spent.currency.code:
        return None

    def share(amount: Amount) -> float:
        return round(min(1.0, amount.units / cap.units), 4) if cap.units > 0 else 1.0

    used = share(spent)
    return Bar(
        spent=used,
        reserved=round(min(share(status.reserved), 1.0 - used), 4),
        mark=WARN_AT,
        warn=used >= WARN_AT,
        cap=cap.text(),
        text=f"{percent(used)} of the budget {cap.text()}, warns at {percent(WARN_AT)}",
    )


def _progress(status: Status) -> str:
    done = count(status.iterations_done)
    of = f"{done} / {count(status.iterations_total)}" if status.iterations_total else done
    epoch = f" · loop entry {status.entry}" if status.entry > 1 else ""
    return f"{of} iterations{epoch}"


def _times(status: Status) -> tuple[Stat, ...]:
    elapsed = Stat("elapsed", duration(status.elapsed_s), Tag.METERED.value)
    if status.ended or status.eta_s is None:
        return (elapsed,)
    return (elapsed, Stat("left", duration(status.eta_s), Tag.ESTIMATED.value))


def _learning(status: Status) -> tuple[Stat, ...]:
    last = Stat("Loss", "-", "none" if status.ended else "not yet")
    if status.loss:
        last = Stat("Loss", number(status.loss[-1][1]), Tag.METERED.value, "the newest loss handed in by a worker")
    speed, when = status.samples_per_s, "so far"
    if status.ended:  # nothing is going on any more: the whole run's average
        speed, when = status.samples_done / max(status.elapsed_s, 1e-3), "in all; this is the average"
    return last, Stat("Samples/s", rate(speed), Tag.METERED.value, f"{count(status.samples_done)} samples {when}")


def _money(status: Status) -> tuple[Stat, ...]:
    shown = [_stat("Spent", status.spent)]
    if not status.ended:
        shown.append(_stat("Rate", status.rate_per_h, "/h"))
        if status.projected is not None:
            shown.append(_stat("Projected", status.projected))
    return tuple(shown)


def _stat(label: str, figure: Figure, per: str = "") -> Stat:
    return Stat(label, figure.amount.text() + per, figure.tag.value)


def _details(status: Status) -> tuple[tuple[str, str], ...]:
    return (
        ("backend", status.backend),
        ("merges", count(status.merges)),
        ("up", size(status.bytes_up)),
        ("down", size(status.bytes_down)),
    )
