"""Tier 1: a `Status` as self-contained HTML with inline SVG. No script; light and dark by `currentColor`; everything escaped. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from depin_nb.core.amount import Amount
from depin_nb.core.status import Status

from .figures import short
from .style import style
from .svg import curve_svg, lane_svg
from .view import Bar, Stat, View, Worker, plain_name, view

MOST_SIGNATURES = 6


@dataclass(frozen=True)
class Payout:
    """What a worker was paid by a settlement; `signature`: of the transaction that paid it, where known."""

    name: str
    simulated: bool
    wallet: str
    amount: Amount
    signature: str = ""


def payouts_of(status: Status) -> tuple[Payout, ...]:
    """The payouts that a status tells of: every device that was paid."""
    only = status.signatures[0] if len(status.signatures) == 1 else ""
    return tuple(Payout(plain_name(d), d.simulated, d.wallet, d.paid, only) for d in status.devices if d.paid)


def html(status: Status, notices: Sequence[str] = ()) -> str:
    """A run at one moment as HTML: at most 20 kB with 16 workers and 200 loss points."""
    return _card(view(status, notices), "")


def summary_html(status: Status, payouts: Sequence[Payout] | None = None, notices: Sequence[str] = ()) -> str:
    """What stays below the cell: the last status and who was paid: beside each worker, or in a table of its own when `payouts` is given."""
    return _card(view(status, notices), _payouts(payouts or ()), wallets=not payouts)


def _card(v: View, after: str, wallets: bool = False) -> str:
    workers = _workers(v, wallets and any(w.wallet for w in v.workers))
    return f'{style()}<div class="depin">{_head(v)}<div class="depin-body">{_learn(v)}{_afford(v)}</div>{workers}{after}{_foot(v)}</div>'


def badge(simulated: bool) -> str:
    """The *simulated* badge, or nothing."""
    return " <span class=depin-badge>simulated</span>" if simulated else ""


def _head(v: View) -> str:
    title = f"<span>{escape(v.title)}</span>" if v.title else ""
    whole = f' title="{escape(v.plan)}"' if v.plan != v.headline else ""
    headline = f'<div class="depin-plan"{whole}>{escape(v.headline)}</div>' if v.headline else ""
    times = " &nbsp; ".join(f"{escape(s.value)} {escape(s.label)} <small>{escape(s.tag)}</small>" for s in v.times)
    done = f'<i style="width:{(v.fraction or 0) * 100:.1f}%"></i>'
    return (
        f'<div class="depin-head"><span class="depin-state depin-{v.tone}">{escape(v.label)}</span><b>{escape(v.run_id)}</b>{title}'
        f"{badge(v.simulated)}</div>{headline}"
        f'<div class="depin-bar" role="progressbar" aria-valuetext="{escape(v.percent or "not known")}">{done}</div>'
        f'<div class="depin-row"><span><b>{escape(v.percent)}</b> {escape(v.progress)}</span><span>{times}</span></div>'
    )


def _learn(v: View) -> str:
    figures = "".join(
        f'<span title="{escape(s.title)}">{escape(s.label)} <b>{escape(s.value)}</b> <small>{escape(s.tag)}</small></span>'
        for s in v.learning
    )
    label = f"loss over iterations, now {v.learning[0].value}"
    drawn = curve_svg(v.curve, label) if v.curve is not None or v.active else ""  # an ended run without a loss has nothing to come
    return f'<div class="depin-learn"><div class="depin-row">{figures}</div>{drawn}</div>'


def _afford(v: View) -> str:
    return (
        f'<div class="depin-afford"><dl class="depin-stats">{_stats(v.money)}'
        f'<div class="depin-cap">{_bar(v.bar)}</div>{_stats(v.tokens)}</dl></div>'
    )


def _stats(stats: Iterable[Stat]) -> str:
    return "".join(f"<dt>{escape(s.label)}</dt><dd>{escape(s.value)}</dd><small>{escape(s.tag)}</small>" for s in stats)


def _bar(bar: Bar | None) -> str:
    if bar is None:
        return "<small>no budget set</small>"
    held = f'<i class="depin-held" style="left:{bar.spent * 100:.1f}%;width:{bar.reserved * 100:.1f}%"></i>' if bar.reserved else ""
    over = " class=depin-over" if bar.warn else ""
    return (
        f'<div class="depin-bar" title="solid: spent, pale: reserved for leases that are out, mark: warning at 80 %">'
        f'<i{over} style="width:{bar.spent * 100:.1f}%"></i>{held}<i class="depin-mark" style="left:{bar.mark * 100:.0f}%"></i></div>'
        f"<small>{escape(bar.text)}</small>"
    )


def _workers(v: View, wallets: bool) -> str:
    if not v.workers:
        return '<div class="depin-foot"><span>no workers yet</span></div>'
    keys = "".join(f'<i class="depin-key depin-{s}"></i>{s}' for s in ("work", "send", "wait", "lost"))
    rows = "".join(_worker(w, wallets) for w in v.workers)
    wallet = "<th class=depin-l>Wallet</th>" if wallets else ""
    return (
        f'<div class="depin-scroll"><table class="depin-table"><thead><tr><th>Worker</th>'
        f'<th class="depin-l depin-wide">{escape(v.window)}{keys}</th>'
        f"<th>Iterations</th><th>Samples/s</th><th>Earned<br>metered</th><th>Paid<br>settled</th>{wallet}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _worker(w: Worker, wallets: bool) -> str:
    about = escape(" · ".join(part for part in (w.kind, w.state, f"{w.price} quoted" if w.price else "", short(w.wallet)) if part))
    kind = "" if w.name.startswith(w.kind) else f" <small>{escape(w.kind)}</small>"
    wallet = _code(w.wallet) if wallets else ""
    return (
        f'<tr><td title="{about}">{escape(w.name)}{kind}{badge(w.simulated)}</td><td>{lane_svg(w)}</td>'
        f"<td>{w.iterations}</td><td>{w.rate}</td><td>{escape(w.earned)}</td><td>{escape(w.paid)}</td>{wallet}</tr>"
    )


def _payouts(payouts: Sequence[Payout]) -> str:
    if not payouts:
        return ""
    signed = len({p.signature for p in payouts} - {""}) > 1  # one transaction for all is in the foot already
    rows = "".join(
        f"<tr><td>{escape(p.name)}{badge(p.simulated)}</td>{_code(p.wallet)}{_code(p.signature) if signed else ''}"
        f"<td>{escape(p.amount.text())}</td></tr>"
        for p in payouts
    )
    head = '<th class="depin-l">Wallet</th>' + ('<th class="depin-l">Signature</th>' if signed else "")
    return (
        f'<div class="depin-scroll"><table class="depin-table"><thead><tr><th>Paid to</th>{head}<th>Amount, settled</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _code(identifier: str) -> str:
    shown = escape(short(identifier)) or "-"
    return f'<td class=depin-l><code title="{escape(identifier)}">{shown}</code></td>'


def _foot(v: View) -> str:
    details = "".join(f"<span>{escape(name)} {escape(text)}</span>" for name, text in v.details if text)
    shown = v.signatures[:MOST_SIGNATURES]
    more = f" and {len(v.signatures) - len(shown)} more" if len(v.signatures) > len(shown) else ""
    codes = "".join(f'<code title="{escape(whole)}">{escape(text)}</code>' for text, whole in shown)
    signed = f"<div><span>transactions</span>{codes}{more}</div>" if shown else ""
    notes = "".join(f"<li>{escape(n)}</li>" for n in v.notices)
    return f'<div class="depin-foot">{details}{signed}{f"<ul class=depin-notes>{notes}</ul>" if notes else ""}</div>'
