"""What leasing needs of a hub: `Hub` is implemented by the session over Dask, and in the tests by a worker half in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..core.lease import EntrySpec, StrategyConfig, Unit
from ..core.state import State
from .analysis.analyse import Facts
from .find.sites import Site
from .probe import Probe
from .ship.capture import Shipment


@dataclass(frozen=True)
class Part:
    """A merged lease as the kernel gets it: its first iteration, logs in order, names left behind, how the body left the loop."""

    first: int
    logs: tuple[bytes, ...]
    left: bytes = b""
    exit: str = ""
    drawn: tuple[bytes, ...] = ()  # of a resumed run's: digests of the items that were drawn


@dataclass(frozen=True)
class Results:
    """What the hub answers: parts in loop order, how many more units it wants now, and the run's state (docs/protocol.md)."""

    parts: tuple[Part, ...] = ()
    want: int = 0
    state: str = "running"
    error: BaseException | None = None


@dataclass(frozen=True)
class Entering:
    """What is known when a loop is entered, for choosing a strategy, for the plan and for the estimate."""

    site: Site
    facts: Facts
    source_note: str
    total: int | None
    solo_reason: str | None
    samples: int
    passes: int | None = None  # how often the loops around it will enter this one, where they tell
    number: int = 0  # of this entry among all of the cell, from 1; one that goes on keeps it
    generators: bytes = b""  # as they stood before the entry, for a resume; empty for one that goes on


class Hub(Protocol):
    """What leasing needs of the hub; the session implements it over Dask. One that resumes a run also has its `past: resume.Past`, and one
    that was told how datasets travel has `data`, one of `source.WAYS`; one that knows
    its workers has `workers`, a list whose members have a `kind`.
    """

    def choose(self, entering: Entering) -> StrategyConfig: ...
    def planned(self, entering: Entering, strategy: StrategyConfig, shipment: Shipment, probe: Probe, state: State) -> None:
        """Told once per site, before anything is spent; may raise to stop here (a dry run does)."""
        ...

    def admit(self, shipment: Shipment) -> bool:
        """Told what an entry's program needs, before the probe; True when other workers remain than `choose` counted on.

        A hub may also have `send`: names that travel although they look like secrets.
        """
        ...

    def open(self, shipment: Shipment, spec: EntrySpec, state: State) -> int:
        """Starts an entry; returns how many units are wanted at first."""
        ...

    def feed(self, units: list[Unit], *, closed: bool) -> int: ...
    def results(self) -> Results:
        """Waits a moment for merged leases; returns at once when there are some."""
        ...

    def newest(self) -> State: ...
    def close(self, reason: str) -> State:
        """Ends the entry (`done`, `exit`, `interrupt`, `error`); returns the state of the last merge."""
        ...
