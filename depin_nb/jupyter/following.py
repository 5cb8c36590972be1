"""Shows a run that goes on elsewhere: its panel until it ends, its log as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from depin_nb.session.detached import DetachedRun
from depin_nb.session.run import Run

from .display import LiveDisplay
from .html import html
from .tables import Shown
from .text import text_block


def follow(run: Run, shell: Any, control: Callable[..., Any] | None) -> None:
    """The live panel until the run ends. An interrupt leaves the run alone; a run that isn't detached is shown as it stands."""
    if not isinstance(run, DetachedRun):
        from IPython.display import display

        display(Shown(html(run.status), text_block(run.status)))  # type: ignore[no-untyped-call,unused-ignore]
        return
    live = LiveDisplay(shell, control=control)
    try:
        for status in run.watch():
            live.update(status)
    finally:
        live.finish(run.status, state=run.status.state)


def print_logs(run: DetachedRun, *, follow: bool) -> None:
    if not follow:
        sys.stdout.write(run.logs())
        return
    for text in run.follow():
        sys.stdout.write(text)
        sys.stdout.flush()
