"""Shows a run while it trains: `LiveDisplay`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

from depin_nb.core.amount import Amount, parse
from depin_nb.core.status import Status

from .figures import clip
from .html import Payout
from .panel import SESSION, Panel
from .surfaces import NotebookSurface, Surface, TerminalSurface, publisher
from .view import view

INTERVAL_S = 0.25  # at most four updates a second (issue's item 6)
EDITOR = "__vsc_ipynb_file__"  # a name that VS Code puts into the namespace of the kernels it starts
Control = Callable[[str, str, Amount | None], Any]  # run id, action, value
log = logging.getLogger(__name__)


def has_page(shell: Any) -> bool:
    """Whether somebody may be looking: a page of Jupyter's or an editor started this kernel. A notebook executed without a page keeps
    29 kB of widget state for each panel that nobody saw."""
    return SESSION in os.environ or EDITOR in getattr(shell, "user_ns", {})


class LiveDisplay:
    """Shows statuses where the user looks: below the cell in Jupyter, in one line of a terminal.

    `control(run_id, action, value)` is called on a thread of its own for clicks in the panel: `pause`, `resume`, `stop`, or `budget` with
    an Amount. Nothing that goes wrong here is raised: the first failure is logged and shown as a notice.
    `monotonic`: seconds that only grow; an update sooner than `INTERVAL_S` after the last is left out unless the state changed.
    """

    def __init__(
        self,
        shell: Any = None,
        *,
        control: Control | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        surface: Surface | None = None,
    ) -> None:
        self._control = control
        self._monotonic = monotonic
        self._lock = RLock()
        self._status: Status | None = None
        self._drawn_at = float("-inf")
        self._drawn_state = ""
        self._notices: list[str] = []
        self._failed = False
        self._finished = False
        self._surface = surface or self._choose(shell)

    def update(self, status: Status) -> None:
        """Shows `status` if it is due. Never raises."""
        with self._lock:
            if self._finished:
                return
            self._status = status
            now = self._monotonic()
            if status.state == self._drawn_state and now - self._drawn_at < INTERVAL_S:
                return
            self._drawn_at, self._drawn_state = now, status.state
            self._guarded(lambda: self._surface.show(status, self._notices))

    def finish(self, status: Status | None = None, *, payouts: Sequence[Payout] | None = None, state: str = "interrupted") -> None:
        """Leaves the summary. Without a status the last one is taken, and its state becomes `state` if it had not ended. Never raises."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
            last = status or self._status
            if last is None:
                return
            if not last.ended:
                last = replace(last, state=state)
            self._guarded(lambda: self._surface.finish(last, payouts, self._notices))

    def _choose(self, shell: Any) -> Surface:
        if getattr(shell, "kernel", None) is None:
            return TerminalSurface()
        wanted = self._control is not None and has_page(shell)
        return NotebookSurface(publisher(), self._monotonic, self._panel if wanted else None)

    def _panel(self, first: Status) -> Panel:
        return Panel(self._clicked, view(first))

    def _clicked(self, action: str, value: str | None) -> None:
        """A click in the panel, on the ear's thread."""
        status = self._status
        if status is None or self._control is None:
            return
        try:
            self._control(status.run_id, action, parse(value) if value is not None else None)
        except Exception as error:
            with self._lock:
                self._notices.append(clip(f"{action} did not work: {getattr(error, 'message', error)}", 200))

    def _guarded(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._notices.append(clip(f"the display failed: {type(error).__name__}: {error}", 200))
                log.warning("The live display failed; training goes on.", exc_info=True)
