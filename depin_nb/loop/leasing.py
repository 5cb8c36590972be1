"""All leased loops of one cell: what `__depin_loops__` is in the rewritten code."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from .callees import Callees
from .contract import Hub
from .entry import Entry
from .find import Site
from .generators import Generators
from .probe import Probe
from .source import wrap as wrap_source


@dataclass
class Loops:
    """All leased loops of one cell: what `__depin_loops__` is in the rewritten code."""

    sites: list[Site]
    hub: Hub
    namespace: dict[str, Any]
    callees: Callees = field(default_factory=Callees)
    zeroes_elsewhere: bool = False
    _probes: dict[int, Probe] = field(default_factory=dict)
    _entries: int = 0

    wrap = staticmethod(wrap_source)

    def enter(self, number: int, iterable: Any) -> Entry:
        frame = sys._getframe(1)
        self._entries += 1
        before = Generators(iterable)
        try:
            return Entry(self, number, iterable, frame, before)
        except BaseException:
            before.restore()
            raise

    def release(self) -> None:
        """Takes everything of ours out of the user's namespaces."""
        self.callees.release()
        for name in [n for n in self.namespace if n.startswith("__depin_")]:
            del self.namespace[name]
