"""Where a run is shown: below a notebook's cell, or in a terminal's last line. Throttling is not theirs: each status they get is due."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

from depin_nb.core.status import Status

from .html import Payout, html, summary_html
from .panel import Panel
from .text import headline, summary_text, text_block, text_line
from .view import view

GRACE_S = 4.0  # how long a frontend has to say that it shows the panel before tier 1 takes its place
Publish = Callable[[dict[str, Any], bool], None]


class Surface(Protocol):
    """One place to show a run."""

    def show(self, status: Status, notices: Sequence[str]) -> None: ...
    def finish(self, status: Status, payouts: Sequence[Payout] | None, notices: Sequence[str]) -> None: ...


def publisher() -> Publish:
    """Publishes mime bundles under one display id: `publish(bundle, update)`."""
    from uuid import uuid4

    from IPython.display import display

    display_id = f"depin-{uuid4().hex[:12]}"

    def publish(bundle: dict[str, Any], update: bool) -> None:
        display(bundle, raw=True, display_id=display_id, update=update)  # type: ignore[no-untyped-call,unused-ignore]

    return publish


class NotebookSurface:
    """One output that is replaced in place. It holds the panel while a frontend shows it, tier 1 otherwise, and tier 1 at the end.

    The first output has both; a frontend without widgets shows its HTML. When no frontend has said within `GRACE_S` that it shows the
    panel, the HTML is updated instead; when one says so later, the panel comes back.
    """

    def __init__(self, publish: Publish, monotonic: Callable[[], float], make_panel: Callable[[Status], Panel] | None = None) -> None:
        self._publish = publish
        self._monotonic = monotonic
        self._make_panel = make_panel
        self._panel: Panel | None = None
        self._opened_at: float | None = None
        self._html_only = False

    def show(self, status: Status, notices: Sequence[str]) -> None:
        """Shows a status; the first call makes the output."""
        if self._opened_at is None:
            self._open(status, notices)
            return
        if self._panel is not None:
            self._panel.show(view(status, notices))
            if self._panel.seen:
                if self._html_only:
                    self._html_only = False
                    self._publish(self._bundle(status, notices, self._panel), True)
                return
            if self._monotonic() - self._opened_at < GRACE_S:
                return
        self._html_only = True
        self._publish(self._bundle(status, notices, None), True)

    def _open(self, status: Status, notices: Sequence[str]) -> None:
        self._opened_at = self._monotonic()
        try:
            self._panel = self._make_panel(status) if self._make_panel is not None else None
        finally:
            self._publish(self._bundle(status, notices, self._panel), False)

    def finish(self, status: Status, payouts: Sequence[Payout] | None, notices: Sequence[str]) -> None:
        """Leaves the summary as the output, and takes the panel away."""
        bundle = {"text/plain": text_block(status, notices), "text/html": summary_html(status, payouts, notices)}
        try:
            self._publish(bundle, self._opened_at is not None)
        finally:
            if self._panel is not None:
                panel, self._panel = self._panel, None
                panel.close()

    @staticmethod
    def _bundle(status: Status, notices: Sequence[str], panel: Panel | None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": text_block(status, notices), "text/html": html(status, notices)}
        return bundle if panel is None else {**bundle, **panel.mime()}


class TerminalSurface:
    """One line, rewritten in place by a carriage return, out of the way of what the cell prints, and gone at the end."""

    def __init__(self, stream: TextIO | None = None, columns: Callable[[], int] | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._columns = columns or (lambda: shutil.get_terminal_size().columns)
        self._live = self._stream.isatty()
        self._shown = 0
        self._guard: _Guard | None = None
        self._told = False

    def show(self, status: Status, notices: Sequence[str]) -> None:
        """Rewrites the line, unless something else stands unfinished on it; the headline once above it.

        Without a terminal nothing is written before the end.
        """
        if not self._live:
            return
        if self._guard is None:
            self._guard = _Guard(self._stream, self.clear)
            if sys.stdout is self._stream:
                sys.stdout = self._guard
        if not self._guard.at_line_start:
            return
        if not self._told and (said := headline(status)):
            self._told = True
            self.clear()
            self._stream.write(said + "\n")
        line = text_line(status, max(20, self._columns() - 1))
        self._stream.write("\r" + line.ljust(self._shown))
        self._stream.flush()
        self._shown = len(line)

    def clear(self) -> None:
        """Removes the line."""
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def finish(self, status: Status, payouts: Sequence[Payout] | None, notices: Sequence[str]) -> None:
        """Removes the line and prints the summary."""
        self.clear()
        if self._guard is not None and sys.stdout is self._guard:
            sys.stdout = self._stream
        broken = self._guard is not None and not self._guard.at_line_start
        self._guard = None
        self._stream.write(("\n" if broken else "") + summary_text(status, payouts, notices) + "\n")
        self._stream.flush()


class _Guard:
    """Stands for stdout while the line is shown: clears the line before anything else is written."""

    def __init__(self, stream: TextIO, clear: Callable[[], None]) -> None:
        self._stream = stream
        self._clear = clear
        self.at_line_start = True

    def write(self, text: str) -> int:
        if text:
            self._clear()
            self.at_line_start = text.endswith(("\n", "\r"))
        return self._stream.write(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
