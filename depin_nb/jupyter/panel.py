"""Tier 2: the live panel, an anywidget whose one trait `status` holds what `view()` made of the newest `Status`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

from .ear import Ear
from .style import asset, squeezed
from .view import View

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
SESSION = "JPY_SESSION_NAME"  # set by jupyter_server for kernels that a notebook page started


@cache
def _widget_class() -> type:
    """The widget's class; made on first use, so that light commands never import anywidget."""
    import anywidget
    import traitlets

    class DepinPanel(anywidget.AnyWidget):
        """Draws a run and has Pause, Stop and a budget field."""

        _esm = asset("panel.js")
        _css = squeezed(asset("view.css") + asset("panel.css"))
        status = traitlets.Dict().tag(sync=True)

    return DepinPanel


class Panel:
    """The panel of one run. `control(action, value)` is called on a thread of its own for each click, also while the cell blocks.

    Actions: `pause`, `resume`, `stop`, and `budget` with the new budget as the user wrote it.
    """

    def __init__(self, control: Callable[[str, str | None], None], first: View) -> None:
        self._ear = Ear(control)
        self.widget: Any = _widget_class()(status=asdict(first))
        self.widget.on_msg(lambda _widget, content, _buffers: self._ear.hear(content))
        self.heard_while_blocked = self._ear.attach(self.widget.comm)

    @property
    def seen(self) -> bool:
        """Whether a frontend shows the panel: it has said so, or it can't be heard and this kernel belongs to a page of Jupyter's own.

        There the panel's second way, through the Jupyter server to the hub, works whatever the kernel hears.
        """
        return self._ear.seen.is_set() or (not self.heard_while_blocked and SESSION in os.environ)

    def show(self, v: View) -> None:
        """One message to the frontend."""
        self.widget.status = asdict(v)

    def mime(self) -> dict[str, Any]:
        """The panel's part of a display bundle."""
        return {WIDGET_MIME: {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}}

    def close(self) -> None:
        """Takes the panel off the page and stops listening."""
        self._ear.close()
        self.widget.close()
