"""HTML and text of a status: small, escaped, self-contained, and with the same content."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from depin_nb.core.amount import DPN, Amount
from depin_nb.jupyter.commands import COMMANDS
from depin_nb.jupyter.html import Payout, html, payouts_of, summary_html
from depin_nb.jupyter.tables import Cell, card, help_text, runs, workers
from depin_nb.jupyter.text import WIDTH, summary_text, text_block, text_line

MOST_BYTES = 20_000
VOID = {"br", "hr", "img", "input"}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Balanced(HTMLParser):
    """Collects text and tags; fails on a tag that is closed out of turn."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.mark.parametrize("state", ["planning", "running", "paused", "stopping", "finished", "interrupted", "stopped", "budget", "failed"])
def test_html_is_well_formed_in_every_state(sample, state: str) -> None:
    page = Balanced(summary_html(sample(state=state)))
    assert "run-7f3c" in page.words
    assert {"svg", "table", "style"} <= set(page.seen)


def test_html_is_under_20_kb_with_16_devices_and_200_points(sample) -> None:
    full = sample(devices=16, span_s=0.1, notices=tuple("n" * 300 for _ in range(30)))
    assert len(html(full).encode()) < MOST_BYTES
    ended = sample(devices=16, state="finished", span_s=0.1, signatures=tuple("s" * 88 for _ in range(20)))
    assert len(summary_html(ended).encode()) + len(text_block(ended).encode()) < MOST_BYTES


def test_html_needs_nothing_from_elsewhere(sample) -> None:
    markup = summary_html(sample(state="finished"))
    page = Balanced(markup)
    assert not {"script", "link", "img", "iframe"} & set(page.seen)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert "http" not in markup
    assert "url(" not in markup


def test_whatever_a_run_is_called_is_escaped(sample) -> None:
    status = sample(name=HOSTILE, where=HOSTILE, strategy=HOSTILE, notices=(HOSTILE,), signatures=(HOSTILE,), state="finished")
    evil = tuple(type(d)(**{**d.__dict__, "name": HOSTILE, "kind": HOSTILE, "wallet": HOSTILE, "price": HOSTILE}) for d in status.devices)
    status = type(status)(**{**status.__dict__, "devices": evil})
    for markup in (summary_html(status), workers(evil).html):
        page = Balanced(markup)
        assert not {"script", "img"} & set(page.seen)
        assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_every_simulated_worker_is_labelled(sample) -> None:
    status = sample()
    assert html(status).count(">simulated<") == 1 + len(status.devices)
    assert text_block(status).count("(simulated)") == len(status.devices)
    assert "4 simulated workers" in text_line(status)
    assert workers(status.devices).text.count("(simulated)") == len(status.devices)


def test_losses_that_are_no_numbers_and_runs_without_anything(sample) -> None:
    assert "the first loss is still to come" in html(sample(points=0, devices=0))
    assert "still to come" not in html(sample(points=0, state="finished"))
    Balanced(html(sample(loss=((0.0, math.nan), (1.0, math.inf)))))
    Balanced(html(sample(points=1, iterations_total=None, elapsed_s=0.0)))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 400])
def test_the_line_fits(sample, width: int) -> None:
    line = text_line(sample(), width)
    assert len(line) <= width
    assert "\n" not in line
    assert line.startswith("run-7f3c running")


def test_text_has_the_figures_with_their_tags(sample) -> None:
    block = text_block(sample())
    for words in ("$0.061 (metered)", "$2.39/h (estimated)", "2.71 DPN (metered)", "0:42 left (estimated)", "61 % of the budget $0.10"):
        assert words in block


def test_the_headline_is_the_first_thing_after_the_state_and_wraps(sample) -> None:
    status = sample(where="the cell, line 2: for x, y in loader -> 45 iterations on 3 workers", strategy="local: " + "slow links " * 12)
    said = f"{status.where}, {status.strategy}".strip()
    assert said in Balanced(html(status)).words
    lines = text_block(status).splitlines()
    assert " ".join(line.strip() for line in lines[1:4]).startswith(said)
    assert max(map(len, lines[1:4])) <= WIDTH
    assert "strategy local" not in text_block(status)


@pytest.mark.parametrize("only", [None, *COMMANDS], ids=lambda c: c.name if c else "all")
def test_help_keeps_to_its_width_and_shows_each_argument_as_it_is_written(only) -> None:
    shown = help_text(only)
    assert max(map(len, shown.text.splitlines())) <= WIDTH
    named = [a.form for a in only.arguments] if only else [c.brief for c in COMMANDS]
    assert [name for name in named if f"  {name}  " not in shown.text] == []
    assert all(name.count("[") == name.count("]") for name in named)


def test_a_long_last_column_wraps_in_text_only() -> None:
    long = "word " * 60
    shown = card("Plan", [[Cell("Loop"), Cell(long.strip())], [Cell("Data"), Cell("short")]], ["", ""], left=2, prose=True)
    first, *others = shown.text.splitlines()[1:]
    assert first.startswith("  Loop  word")
    assert [line[:8].strip() for line in others] == ["", "", "", "Data"]
    assert max(map(len, shown.text.splitlines())) <= WIDTH
    assert long.strip() in shown.html


def test_payouts_come_from_the_status_or_from_the_caller(sample) -> None:
    status = sample(state="finished")
    assert [p.amount for p in payouts_of(status)] == [d.paid for d in status.devices]
    assert payouts_of(sample()) == ()
    one = Payout("laptop-9", False, "W" * 44, Amount(5_000_000, DPN), "S" * 88)
    text = summary_text(status, [one])
    assert "laptop-9" in text
    assert "5.00 DPN settled" in text
    both = summary_html(status, [one, Payout("phone-7", True, "V" * 44, Amount(1, DPN), "T" * 88)])
    assert 'title="' + "S" * 88 in both


def test_tables_are_well_formed(sample) -> None:
    rows = [
        {"run_id": "run-1", "name": None, "state": "finished", "started_at": 1.7e9, "ended_at": 1.7e9 + 62, "summary": sample().to_dict()}
    ]
    for shown in (help_text(), workers(()), runs([]), runs(rows), runs([{"run_id": "run-2"}])):
        Balanced(shown.html)
        assert shown.text == repr(shown)
    assert re.search(r"run-1 .* 1:02 .* 412 .* \$0\.061", runs(rows).text)
