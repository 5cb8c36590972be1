"""LiveDisplay and its surfaces: throttled, never raising, and clean at the end."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Any

from depin_nb.core.amount import Amount
from depin_nb.jupyter.display import INTERVAL_S, LiveDisplay
from depin_nb.jupyter.panel import WIDGET_MIME
from depin_nb.jupyter.surfaces import GRACE_S, NotebookSurface, TerminalSurface


class Recorder:
    """A surface that keeps what it was given."""

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.finished: list[Any] = []
        self.notices: list[str] = []

    def show(self, status, notices):
        self.shown.append(status)
        self.notices = list(notices)

    def finish(self, status, payouts, notices):
        self.finished.append(status)
        self.notices = list(notices)


class Broken(Recorder):
    """A surface whose place is gone."""

    def show(self, status, notices):
        super().show(status, notices)
        raise OSError("the page is gone")


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def live(surface: Any, clock: Time, control: Callable[..., Any] | None = None) -> LiveDisplay:
    return LiveDisplay(control=control, monotonic=clock, surface=surface)


def test_at_most_four_updates_a_second_but_a_new_state_at_once(sample) -> None:
    surface, clock = Recorder(), Time()
    display = live(surface, clock)
    for _ in range(100):
        display.update(sample())
        clock.s += INTERVAL_S / 25
    assert len(surface.shown) == 4
    display.update(sample(state="paused"))
    assert surface.shown[-1].state == "paused"
    assert len(surface.shown) == 5


def test_a_display_that_fails_is_said_once_and_never_raises(sample, caplog) -> None:
    surface, clock = Broken(), Time()
    display = live(surface, clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            display.update(sample())
            clock.s += 1
        display.finish()
    assert len(caplog.records) == 1
    assert len(surface.shown) == 3
    assert surface.notices == ["the display failed: OSError: the page is gone"]
    assert len(surface.finished) == 1


def test_finish_takes_the_last_status_and_ends_it_once(sample) -> None:
    surface = Recorder()
    display = live(surface, Time())
    display.update(sample())
    display.finish(state="failed")
    display.finish(sample(state="finished"))
    display.update(sample())
    assert [s.state for s in surface.finished] == ["failed"]
    assert len(surface.shown) == 1


def test_finish_keeps_a_state_that_has_ended(sample) -> None:
    surface = Recorder()
    display = live(surface, Time())
    display.update(sample(state="budget"))
    display.finish(state="failed")
    assert [s.state for s in surface.finished] == ["budget"]


def test_clicks_reach_the_run_with_amounts_and_errors_become_notices(sample) -> None:
    surface, heard = Recorder(), []

    def control(run_id: str, action: str, value: Amount | None) -> None:
        heard.append((run_id, action, value))
        if action == "pause":
            raise OSError("no hub")

    display = live(surface, Time(), control)
    display._clicked("stop", None)
    assert heard == []  # nothing runs yet
    display.update(sample())
    display._clicked("budget", "$0.20")
    display._clicked("budget", "a lot")
    display._clicked("pause", None)
    assert heard == [("run-7f3c", "budget", Amount(200_000)), ("run-7f3c", "pause", None)]
    display.finish()
    assert surface.notices == ["budget did not work: 'a lot' is not an amount", "pause did not work: no hub"]


class Page:
    """Keeps what is published, and stands for the panel with a frontend that may say hello."""

    def __init__(self) -> None:
        self.published: list[tuple[dict[str, Any], bool]] = []
        self.drawn = 0
        self.seen = False
        self.closed = False

    def __call__(self, bundle, update):
        self.published.append((bundle, update))

    def show(self, _view):
        self.drawn += 1

    def mime(self):
        return {WIDGET_MIME: {"model_id": "m"}}

    def close(self):
        assert WIDGET_MIME not in self.published[-1][0], "the panel must be replaced before it goes"
        self.closed = True


def test_a_page_that_shows_the_panel_gets_no_html_until_the_end(sample) -> None:
    page, clock = Page(), Time()
    surface = NotebookSurface(page, clock, lambda _: page)  # type: ignore[arg-type,return-value]
    surface.show(sample(), [])
    page.seen = True
    for _ in range(30):
        clock.s += 1
        surface.show(sample(), [])
    assert page.drawn == 30
    assert [update for _, update in page.published] == [False]
    assert {WIDGET_MIME, "text/html", "text/plain"} == set(page.published[0][0])
    surface.finish(sample(state="finished"), None, [])
    assert page.closed
    assert set(page.published[-1][0]) == {"text/html", "text/plain"}
    assert page.published[-1][1]


def test_a_page_without_widgets_gets_html_and_one_that_is_late_its_panel_back(sample) -> None:
    page, clock = Page(), Time()
    surface = NotebookSurface(page, clock, lambda _: page)  # type: ignore[arg-type,return-value]
    surface.show(sample(), [])
    clock.s += GRACE_S / 2
    surface.show(sample(), [])
    assert len(page.published) == 1
    clock.s += GRACE_S
    surface.show(sample(), [])
    assert WIDGET_MIME not in page.published[-1][0]
    page.seen = True
    surface.show(sample(), [])
    assert WIDGET_MIME in page.published[-1][0]
    surface.show(sample(), [])
    assert len(page.published) == 3


def test_a_panel_that_can_not_be_made_leaves_the_html(sample) -> None:
    page, clock = Page(), Time()

    def unmade(_status):
        raise ImportError("no anywidget")

    surface = NotebookSurface(page, clock, unmade)
    display = live(surface, clock)
    display.update(sample())
    clock.s += 1
    display.update(sample())
    display.finish()
    assert [set(bundle) for bundle, _ in page.published] == [{"text/html", "text/plain"}] * 3
    assert "no anywidget" in page.published[-1][0]["text/html"]


class Tty(io.StringIO):
    """A terminal that keeps all that was written."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines as a terminal would show them."""
        lines, column = [""], 0
        for char in self.getvalue():
            if char == "\r":
                column = 0
            elif char == "\n":
                lines.append("")
                column = 0
            else:
                lines[-1] = lines[-1][:column].ljust(column) + char + lines[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


def test_the_terminal_line_keeps_out_of_the_way_of_prints(sample, monkeypatch) -> None:
    tty = Tty()
    monkeypatch.setattr(sys, "stdout", tty)
    surface = TerminalSurface(tty, lambda: 100)
    surface.show(sample(), [])
    assert tty.screen()[-1].startswith("run-7f3c running")
    print("[0, 100] loss 0.513")
    begun = "run-7f3c: cell 3, line 4: for i, (x, y) in enumerate(loader), local, 50 inner steps, 4 bits"
    assert tty.screen() == [begun, "[0, 100] loss 0.513", ""]
    print("a line with", end="")
    surface.show(sample(), [])  # stays away: a line is open
    print(" two parts")
    surface.show(sample(), [])
    assert tty.screen()[:3] == [begun, "[0, 100] loss 0.513", "a line with two parts"]  # the headline once
    assert len(tty.screen()[3]) < 100
    surface.finish(sample(state="finished"), None, [])
    assert sys.stdout is tty
    assert tty.screen()[3] == "run-7f3c digits: finished (simulated devices)"


def test_a_pipe_gets_the_summary_only(sample) -> None:
    pipe = io.StringIO()
    surface = TerminalSurface(pipe)
    surface.show(sample(), [])
    assert pipe.getvalue() == ""
    surface.finish(sample(state="stopped"), None, ["a notice"])
    assert "\r" not in pipe.getvalue()
    assert "a notice" in pipe.getvalue()


def test_updates_from_another_thread_are_safe_beside_finish(sample) -> None:
    from threading import Thread

    surface, clock, begun = Recorder(), Time(), Event()
    display = live(surface, clock)

    def updates() -> None:
        for i in range(500):
            display.update(replace(sample(), iterations_done=i, state="running" if i % 2 else "paused"))
            begun.set()

    thread = Thread(target=updates)
    thread.start()
    assert begun.wait(30)
    display.finish()
    shown = len(surface.shown)
    thread.join(30)
    assert not thread.is_alive()
    assert len(surface.shown) == shown
    assert len(surface.finished) == 1
