"""All leased loops of one cell: what `__depin_loops__` is in the rewritten code."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from typing import Any

from .contract import Hub
from .entry import Entry
from .find.counting import passes
from .find.sites import Site
from .generators import Generators
from .probe import Probe
from .released import PlainEntry, release_suspended
from .resume import Past, replay_of
from .source import Fetching
from .source import wrap as wrap_source
from .split.callees import Callees


@dataclass
class Loops:
    """All leased loops of one cell: what `__depin_loops__` is in the rewritten code."""

    sites: list[Site]
    hub: Hub
    namespace: dict[str, Any]
    callees: Callees = field(default_factory=Callees)
    keeps: dict[int, tuple[str, ...]] = field(default_factory=dict)  # by site: what only the probe found to be kept beside
    told: set[str] = field(default_factory=set)  # what the notebook was told of already: places whose values stayed on a worker
    _probes: dict[int, Probe] = field(default_factory=dict)
    token: int = field(default_factory=itertools.count(1).__next__)  # no two cells have the same
    _entries: int = 0

    wrap = staticmethod(wrap_source)
    fetching = staticmethod(Fetching)
    passes = staticmethod(passes)
    endless = staticmethod(itertools.count)

    @property
    def data(self) -> str:
        """Which way datasets travel (`source.WAYS`)."""
        return str(getattr(self.hub, "data", "auto"))

    @property
    def elsewhere(self) -> bool:
        """Whether a worker may be on another machine. Those of kind `local` are processes of this one and share its disk."""
        workers = getattr(self.hub, "workers", ())
        return isinstance(workers, (list, tuple)) and any(getattr(worker, "kind", "local") != "local" for worker in workers)

    @property
    def past(self) -> Past | None:
        """What a resumed run did already."""
        past: Past | None = getattr(self.hub, "past", None)
        return past

    def enter(self, number: int, iterable: Any, token: int) -> Entry | PlainEntry:
        """`token`: of the cell that the code was rewritten for; a generator of an earlier cell's goes on plainly."""
        frame = sys._getframe(1)
        if token != self.token:
            return PlainEntry(iterable, frame)
        self._entries += 1
        before = Generators(iterable)
        replay = replay_of(self.past, self._entries)
        try:
            if replay is not None:
                before.follow(replay.chapter.generators)
            return Entry(self, number, iterable, frame, before, replay)
        except BaseException:
            before.restore()
            raise

    def release(self) -> None:
        """Takes everything of ours out of the user's namespaces."""
        self.callees.release()
        for name in [n for n in self.namespace if n.startswith("__depin_")]:
            del self.namespace[name]
        release_suspended(self.sites, self.callees.originals)
