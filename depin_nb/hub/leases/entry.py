"""One loop entry on the hub: its queue of units, the rounds of leases on it, and the results in loop order. No I/O, no clock."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import Amount
from depin_nb.core.errors import HubError
from depin_nb.core.lease import EntrySpec, Lease, Report, Unit
from depin_nb.hub.leases.members import Member
from depin_nb.hub.leases.output import Output
from depin_nb.hub.leases.rounds import Pace
from depin_nb.hub.leases.shares import Charge
from depin_nb.hub.wake import Signal
from depin_nb.training.lifecycle import LeaseState, Trigger, advance

if TYPE_CHECKING:
    from depin_nb.hub.aggregation import Parked, Sum
    from depin_nb.hub.leases.gang import GangCall
    from depin_nb.hub.versions.spool import Held

OUT = (LeaseState.LEASED, LeaseState.SUBMITTED)
MAX_ANSWER_BYTES = 32 << 20  # of logs in one depin_results answer; a single lease may exceed it


@dataclass(eq=False)
class LeaseRecord:
    """A lease and what became of it. Only `go` changes its state. Times monotonic, in seconds; amounts in DPN.

    `number`: its place among the entry's leases. `begun_s`: since when its member can work on it, None while it waits behind another
    one; `deadline_s` counts from then. `twin`: another worker's lease of the same units. `spare`: its twin's report came first.
    """

    lease: Lease
    member: Member
    number: int
    reserved: Amount
    given_s: float
    pace: Pace
    allowed_s: float
    begun_s: float | None = None
    state: LeaseState = LeaseState.OPEN
    report: Report | None = None
    change: Held | Parked | None = None
    reason: str = ""
    twin: LeaseRecord | None = None
    spare: bool = False
    again: bool = False  # its change was lost with its aggregator: its worker hands it in again
    took_s: float = 0.0  # from beginning to report, by the hub's clock
    charge: Charge | None = None  # what its run's share was charged with

    def at(self, state: LeaseState) -> bool:
        return self.state is state

    def go(self, trigger: Trigger) -> LeaseState:
        self.state = advance(self.state, trigger)
        return self.state

    @property
    def deadline_s(self) -> float:
        return math.inf if self.begun_s is None else self.begun_s + self.allowed_s

    @property
    def came_s(self) -> float:
        """When its report came."""
        return (self.given_s if self.begun_s is None else self.begun_s) + self.took_s

    @property
    def needed(self) -> bool:
        """Whether nobody else has its units or has handed them in."""
        return self.twin is None or self.twin.state not in (*OUT, LeaseState.ACCEPTED, LeaseState.MERGED)

    @property
    def last_index(self) -> int:
        """The last iteration that was done (of the last unit as long as there is no report)."""
        done = self.report.done if self.report is not None else len(self.lease.units)
        return self.lease.units[done - 1].index

    @property
    def exit(self) -> str:
        return self.report.exit if self.report is not None else ""

    @property
    def samples(self) -> int:
        """Of what was done; of all units as long as there is no report."""
        return sum(u.samples for u in self.lease.units[: self.report.done if self.report is not None else None])


@dataclass(eq=False)
class Round:
    """Leases that merge together, into `base_version`; in a local one there may be late ones, of earlier versions.

    `kind`: solo, local or gang. `lost`: units that came back to the queue while it was open.
    """

    kind: str
    base_version: int
    records: list[LeaseRecord] = field(default_factory=list)
    gang: GangCall | None = None
    lost: set[int] = field(default_factory=set)
    aggregators: dict[str, str] | None = None  # by worker, both by address; None = not decided yet
    sums: dict[str, Sum] = field(default_factory=dict)  # by aggregator
    gathering: bool = False
    merging: bool = False
    committed: bool = False
    looked_s: float = -math.inf  # when its leases were last looked at for all idle members, how many they were,
    looked: int = 0
    late: bool = False  # and whether any was late or silent

    @property
    def out(self) -> bool:
        return any(r.state in OUT for r in self.records)

    @property
    def accepted(self) -> list[LeaseRecord]:
        return [r for r in self.records if r.state is LeaseState.ACCEPTED]

    @property
    def fresh(self) -> list[LeaseRecord]:
        """Those that began from the version into which it merges."""
        return [r for r in self.records if r.lease.base_version == self.base_version]

    def takes(self, member: Member) -> bool:
        """Whether the member isn't part of the round yet."""
        return all(r.member is not member for r in self.records)


@dataclass(frozen=True)
class Result:
    """Merged iterations `first`, `first` + 1, .. with a log each, for the kernel."""

    first: int
    logs: tuple[bytes, ...]
    left: bytes
    exit: str
    version: int

    def to_dict(self) -> dict[str, Any]:
        return {"first": self.first, "logs": list(self.logs), "left": self.left, "exit": self.exit, "version": self.version}


class Entry:
    """`halt` says why no more leases are given ("" = they are): stopped, budget, solo-lost, no-workers, failed, or closed."""

    def __init__(self, run_id: str, entry_id: int, spec: EntrySpec, base_version: int) -> None:
        self.run_id, self.entry_id, self.spec, self.base_version = run_id, entry_id, spec, base_version
        self.closed = False  # the kernel has fed everything
        self.halt = ""
        self.error: dict[str, Any] | None = None
        self.rounds: list[Round] = []
        self.expired: dict[str, LeaseRecord] = {}  # taken away for being late
        self.exit_at: int | None = None
        self.gang_limit: int | None = None  # a gang left the loop here: the next one goes no further
        self.solo_worker = ""  # worker_id
        self.solo_process = ""  # of that worker, as a killed hub knew it
        self.solo_length = 1
        self.leases = 0
        self.life = 0  # how many hubs this run has outlived: no two of them give the same lease id
        self.away: set[int] = set()  # units of leases that a killed hub lent and that may come back
        self.ended_before: frozenset[str] = frozenset()  # leases that ended at a killed hub
        self.merged: set[int] = set()
        self.changed = Signal()
        self.polls = 0  # open depin_results calls: the kernel waits for results, so it can't feed
        self.told_want = 0
        self.program_bytes = 0
        self.output = Output()  # of a whole cell
        self._fed: set[int] = set()
        self._order: list[int] = []
        self._units: dict[int, Unit] = {}
        self._kept_back: dict[int, Unit] = {}  # of those that are away
        self._beyond: dict[int, Unit] = {}  # cut off by an exit that may turn out not to count
        self._results: dict[int, Result] = {}

    # --- the queue --------------------------------------------------------------------------------------

    @property
    def open_units(self) -> int:
        return len(self._order)

    @property
    def held(self) -> str:
        """What kind of rounds the strategy makes."""
        strategy = self.spec.strategy
        return "solo" if strategy.solo else "gang" if strategy.name == "sync" else "local"

    def feed(self, units: Iterable[Unit], closed: bool) -> None:
        """Units from the kernel. One that it sent before counts once. Raises HubError for an index before the entry's first."""
        for unit in units:
            if unit.index in self.merged and unit.index not in self._fed:  # restored: its result is here
                self._fed.add(unit.index)
                continue
            if unit.index < self.spec.first or unit.samples < 0:
                raise HubError(f"unit {unit.index} can't be part of an entry that begins at {self.spec.first}")
            if unit.index not in self._fed:
                self._fed.add(unit.index)
                if unit.index in self.away:
                    self._kept_back[unit.index] = unit
                else:
                    self.put_back([unit])
        self.closed = self.closed or closed

    def known(self, indices: Iterable[int]) -> None:
        """These came to a killed hub; its kernel doesn't send them again."""
        self._fed.update(indices)

    def came_back(self, indices: Iterable[int]) -> bool:
        """Whether the kernel has sent all of these, which are away, again."""
        return all(i in self._kept_back for i in indices)

    def take_back(self, indices: Iterable[int]) -> tuple[Unit, ...]:
        """The units of a lease that is no longer away: its worker has it again."""
        indices = list(indices)
        self.away.difference_update(indices)
        return tuple(self._kept_back.pop(i) for i in indices)

    def open_again(self, indices: Iterable[int]) -> None:
        """Nobody has these any more: they are leased again."""
        indices = list(indices)
        self.away.difference_update(indices)
        self.put_back([self._kept_back.pop(i) for i in indices if i in self._kept_back])

    def put_back(self, units: Iterable[Unit]) -> None:
        for unit in units:
            if self.exit_at is None or unit.index <= self.exit_at:
                self._units[unit.index] = unit
                insort(self._order, unit.index)
            elif self.spec.contiguous:
                self._beyond[unit.index] = unit

    def peek(self, count: int, *, contiguous: bool, at_most: int | None = None, among: Collection[int] | None = None) -> list[int]:
        """The next `count` open indices in loop order, or fewer: up to index `at_most`, of `among`, one gapless span if `contiguous`."""
        found: list[int] = []
        for index in self._order:
            if len(found) >= count or (at_most is not None and index > at_most):
                break
            if among is not None and index not in among:
                if found and contiguous:
                    break
                continue
            if contiguous and found and index != found[-1] + 1:
                break
            found.append(index)
        return found

    def take(self, indices: Iterable[int]) -> tuple[Unit, ...]:
        """Removes these from the queue."""
        taken = []
        for index in indices:
            del self._order[bisect_left(self._order, index)]
            taken.append(self._units.pop(index))
        return tuple(taken)

    def queued(self, indices: Iterable[int]) -> bool:
        return all(i in self._units for i in indices)

    def unit_of(self, index: int) -> Unit:
        return self._units[index]

    def cut_off(self, index: int) -> None:
        """The loop ends with iteration `index`: what lies beyond is not wanted."""
        self.exit_at = index if self.exit_at is None else min(index, self.exit_at)
        self.put_back(self.take([i for i in self._order if i > self.exit_at]))

    def go_back(self, units: Iterable[Unit], left_at: Collection[int]) -> None:
        """These were done behind a gap and count for nothing: they are open again. `left_at`: exits that still hold."""
        beyond, self._beyond, self.exit_at = list(self._beyond.values()), {}, None
        self.put_back([*units, *beyond])
        if left_at:
            self.cut_off(min(left_at))

    def gap(self, rnd: Round) -> int | None:
        """The first iteration that a lost member of the round left open, where later ones may not be merged before it."""
        open_ = self.peek(1, contiguous=False, among=rnd.lost) if self.spec.contiguous and rnd.lost else []
        return open_[0] if open_ else None

    def want(self, ahead: int) -> int:
        """How many more units the kernel should send so that `ahead` are here."""
        if self.closed or self.halt or self.exit_at is not None:
            return 0
        want = max(0, ahead - self.open_units)
        if self.spec.total is not None:
            want = min(want, max(0, self._rest))
        return want

    @property
    def _rest(self) -> int:
        """Iterations that the kernel hasn't sent yet, where their number is known (-1 where not)."""
        return -1 if self.spec.total is None else self.spec.total - self.spec.first - len(self._fed)

    # --- rounds -----------------------------------------------------------------------------------------

    @property
    def round(self) -> Round | None:
        """The round that leases are out of, if one is."""
        return next((r for r in self.rounds if not r.merging), None)

    @property
    def busy(self) -> bool:
        return bool(self.rounds)

    def record(self, lease_id: str) -> LeaseRecord | None:
        return next((r for rnd in self.rounds for r in rnd.records if r.lease.lease_id == lease_id), None)

    def next_lease_id(self) -> str:
        self.leases += 1
        again = f"r{self.life}." if self.life else ""
        return f"{self.run_id}-{self.entry_id}-{again}{self.leases}"

    def is_final(self) -> bool:
        """Whether nothing remains for later once what was taken is done."""
        return not self._order and not self._kept_back and (self.closed or self._rest == 0)

    # --- results ----------------------------------------------------------------------------------------

    def add_merged(self, indices: Collection[int], results: Iterable[Result]) -> None:
        """Iterations that a committed merge holds. Raises HubError if one is in a merge already: the count would be wrong."""
        twice = self.merged.intersection(indices)
        if twice:
            raise HubError(f"iterations {sorted(twice)[:5]} would be merged twice")
        self.merged.update(indices)
        self._results.update((r.first, r) for r in results)

    def restore(self, result: Result) -> None:
        """A result that an earlier run's merge holds, behind a gap: told in its turn, never leased."""
        self.add_merged(range(result.first, result.first + len(result.logs)), [result])
        if result.exit:
            self.cut_off(result.first + len(result.logs) - 1)

    def results(self, after: int) -> tuple[list[Result], bool]:
        """Results from iteration `after` on, gapless, in loop order, and whether more follow at once; earlier ones are forgotten."""
        for first in [f for f, r in self._results.items() if f + len(r.logs) <= after]:
            del self._results[first]
        answer: list[Result] = []
        at, size = max(after, self.spec.first), 0
        while (result := self._results.get(at)) is not None and (self.exit_at is None or at <= self.exit_at):
            size += sum(map(len, result.logs)) + len(result.left)
            if answer and size > MAX_ANSWER_BYTES:
                return answer, True
            answer.append(result)
            at += len(result.logs)
            if result.exit:
                break
        return answer, False
