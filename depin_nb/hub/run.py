"""A run as the hub holds it while it is active: its newest state, entry, money, curve and what each worker did."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import Amount
from depin_nb.core.events import Event
from depin_nb.hub.leases.entry import Entry
from depin_nb.hub.leases.members import Member, Tally
from depin_nb.hub.records.journal import LeaseRow
from depin_nb.metering.budget import Budget
from depin_nb.metering.meter import Meter
from depin_nb.metering.price import PriceBook

if TYPE_CHECKING:
    from depin_nb.core.state import State
    from depin_nb.hub.records.resuming import Past
    from depin_nb.hub.versions.references import Reference
    from depin_nb.training.merge import OuterState

MAX_POINTS = 20_000
MAX_NOTICES = 20
MAX_BACKLOG = 10_000


class Curve:
    """Loss points in memory: thinned by halves past MAX_POINTS, so that a long run's curve keeps its shape."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []
        self._stride, self._seen = 1, 0
        self._short: tuple[int, tuple[tuple[float, float], ...]] = (-1, ())

    def add(self, x: float, y: float) -> None:
        self._seen += 1
        if self._seen % self._stride == 0:
            self._points.append((x, y))
        if len(self._points) > MAX_POINTS:
            self._points = sorted(self._points)[::2]
            self._stride *= 2

    def decimated(self, count: int = 200) -> tuple[tuple[float, float], ...]:
        """At most `count` points in order of iteration, each the mean of its bucket; the last point stays as it is."""
        if self._short[0] == self._seen:
            return self._short[1]
        points = sorted(self._points)
        if len(points) > count:
            size = -(-len(points) // (count - 1))
            buckets = [points[i : i + size] for i in range(0, len(points), size)]
            points = [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets] + [points[-1]]
        self._short = (self._seen, tuple((round(x, 2), float(f"{y:.6g}")) for x, y in points))
        return self._short[1]


@dataclass
class Run:
    """`budget` is kept in DPN (small leases cost less than a micro-dollar); `cap` is the budget as the user gave it.

    `seen_s`: when its kernel last called (monotonic). `backlog`, `events`: what the next journal transaction writes along.
    """

    run_id: str
    name: str
    where: str
    strategy: str
    backend: str
    source: str
    cap: Amount | None
    budget: Budget
    meter: Meter
    started_at: float
    started_s: float
    seen_s: float
    state: str = "planning"
    message: str = ""
    entry: Entry | None = None
    entries: int = 0
    version: int = -1
    weights: State | None = None  # the newest version
    outer: OuterState | None = None
    reference: Reference | None = None  # what its workers hold, where versions travel by steps
    done_before: int = 0  # iterations merged in earlier entries
    iterations: int = 0
    most_workers: int | None = None  # as the user limits it
    passes: int | None = None  # how often the loop will be entered, where the code around it tells
    total: int | None = None  # iterations of all entries so far
    samples: int = 0
    merges: int = 0
    curve: Curve = field(default_factory=Curve)
    tallies: dict[str, Tally] = field(default_factory=dict)
    solo_worker: str = ""
    change_bytes: int = 0  # of the newest change that came
    bytes_up: int = 0
    bytes_down: int = 0
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_NOTICES))
    signatures: tuple[str, ...] = ()
    warned: bool = False
    polls: int = 0
    without_workers_s: float | None = None
    ended_s: float | None = None
    backlog: deque[LeaseRow] = field(default_factory=lambda: deque(maxlen=MAX_BACKLOG))
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_BACKLOG))
    commit_tail: asyncio.Task[None] | None = None
    finishing: asyncio.Lock = field(default_factory=asyncio.Lock)
    simulated: bool = False
    settled: bool = False
    interrupt: Callable[[], None] | None = None  # of a detached run: interrupts its process, as the Stop button does a kernel
    note: str = ""  # why it is being ended, where its kernel doesn't say
    number: int = 0  # of the newest loop entry in its cell
    past: Past | None = None
    continues: str | None = None
    lost: bool = False  # its kernel's connection is closed
    keeps: bool = True  # what going on would need
    kept_bytes: int = 0
    ends: set[int] = field(default_factory=set)  # versions at the ends of loop entries

    @property
    def ended(self) -> bool:
        return self.ended_s is not None

    @property
    def leasing(self) -> bool:
        """Whether new leases may be given."""
        return self.state == "running" and self.entry is not None and not self.entry.halt

    def clock(self, monotonic_s: float) -> float:
        return monotonic_s - self.started_s

    def tally(self, member: Member, book: PriceBook) -> Tally:
        found = self.tallies.get(member.worker_id)
        if found is None:
            price = book.price(member.profile).text()
            found = Tally(member.worker_id, member.profile, member.simulated, member.wallet, price)
            self.tallies[member.worker_id] = found
            self.simulated = self.simulated or member.simulated
        found.gone = ""
        return found

    def say(self, kind: str, at: float, notice: str = "", **data: Any) -> None:
        """Records an event; with `notice`, people are told too."""
        if notice:
            self.notices.append(notice)
            data["text"] = notice
        self.events.append(Event(self.run_id, kind, at, data))

    def drain(self) -> tuple[list[LeaseRow], list[Event]]:
        """What is yet to be journalled; the caller writes it."""
        rows, events = list(self.backlog), list(self.events)
        self.backlog.clear()
        self.events.clear()
        return rows, events
