"""Workers as the hub knows them, and what each did for a run."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from depin_nb.core.amount import DPN, Amount
from depin_nb.core.packages import checked, lacking
from depin_nb.core.status import Device
from depin_nb.hub.leases.rounds import HISTORY_MAX, SILENT_MAX_S, SILENT_S

LANE_S = 60.0
LANES_AT_ONCE = 50  # redrawn for one status; of more devices those whose lane is the oldest
MAX_SPANS = 2000
LANE_BINS = 120  # as fine as a lane is drawn
SMOOTHING = 0.5  # weight of the newest measurement: a device's speed changes with heat and battery, within a few leases
MAX_REJECTED = 3
MAX_HELD = 2  # leases of a member: one at work, one ahead
LINK = {"up_mbit_s": 1e7, "down_mbit_s": 1e7, "latency_ms": 1e6}  # what a link is, and what each is at most
MEMORY_MARGIN = 1.25  # the probe's figure is an estimate: allocators fragment, batches differ
MAX_MEMORY_BYTES = 1 << 50
EDGE = ("phone", "laptop", "single-board")  # profiles of devices that are never asked to serve others
KINDS = ("local", "phone", "laptop", "single-board", "cloud")


@dataclass(eq=False)
class Member:
    """A joined worker. `address`: Dask's; `speed`: relative to this machine's core, a fact it gave; `held`: leases that it has.

    `parked`: the open `depin_lease` call, if it waits in one; `seen_s`: when it last said anything (monotonic).
    """

    address: str
    worker_id: str
    profile: str
    wallet: str
    backend: str
    simulated: bool
    speed: float
    session: str
    seen_s: float
    packages: Mapping[str, str] | None = None  # {distribution: version} as it says; None: it doesn't say
    compiles: bool = True
    memory_bytes: int = 0  # that leases may take, as it says; 0: it doesn't say
    up_mbit_s: float = 0.0  # its link as it measured it; 0: it doesn't say
    down_mbit_s: float = 0.0
    latency_ms: float = 0.0
    held: dict[str, str] = field(default_factory=dict)  # lease_id -> run_id: one at work and one ahead, in the order of lending
    rejected: dict[str, int] = field(default_factory=dict)  # by run
    full: set[str] = field(default_factory=set)  # runs for which its memory didn't do
    leases: dict[str, int] = field(default_factory=dict)  # by run: measured ones
    rates: dict[str, float] = field(default_factory=dict)  # by run: iterations/s at work, measured
    overheads: dict[str, float] = field(default_factory=dict)  # by run: seconds of a lease that weren't work, measured
    ratios: dict[str, deque[float]] = field(default_factory=dict)  # by run: took / expected of its latest leases
    chatty: bool = False  # it says twice a second that it is there
    patience_s: float = SILENT_S  # a silence longer than that counts
    process: str = ""  # what it calls its process: another one of its name has nothing of what this one has
    brought: frozenset[str] = frozenset()  # leases that it came with
    crowd: Members | None = field(default=None, repr=False)  # where it has joined
    _parked: asyncio.Future[dict[str, Any]] | None = field(default=None, repr=False)

    @property
    def parked(self) -> asyncio.Future[dict[str, Any]] | None:
        return self._parked

    @parked.setter
    def parked(self, call: asyncio.Future[dict[str, Any]] | None) -> None:
        self._parked = call
        if self.crowd is not None:
            self.crowd.parks(self)

    def silent(self, now_s: float) -> bool:
        """Whether it was chatty and has fallen silent: stopped, asleep, or its link is gone without a word."""
        return self.chatty and now_s - self.seen_s > self.patience_s

    def given_up(self) -> None:
        """Its lease went elsewhere for its silence. Another one it gets once it asks anew: it was busy then, and has twice as long."""
        self.patience_s = min(2 * self.patience_s, SILENT_MAX_S)
        if self.parked is not None and not self.parked.done():
            self.parked.set_result({"wait": True})
        self.parked = None

    def rate(self, run_id: str, seconds_per_iteration: float) -> float:
        """Iterations per second to expect; before the first report the device's own figure."""
        measured = self.rates.get(run_id)
        return measured if measured else max(1e-6, self.speed / max(seconds_per_iteration, 1e-6))

    def measured(self, run_id: str, iterations: int, work_s: float, took_s: float, expected_s: float = 0.0) -> None:
        """A lease took `took_s` from beginning to report. Of the `work_s` that the worker claims no more than that is believed.

        `expected_s`: what was expected of it when it was lent; 0 where nothing was known of this device yet.
        """
        if expected_s > 0:
            self.ratios.setdefault(run_id, deque(maxlen=HISTORY_MAX)).append(took_s / expected_s)
        work_s = min(work_s, took_s) if work_s > 0 else took_s
        if work_s <= 0 or iterations <= 0:
            return
        self.leases[run_id] = count = self.leases.get(run_id, 0) + 1
        for kept, value in ((self.rates, iterations / work_s), (self.overheads, took_s - work_s)):
            # the first lease opens the program and warms torch up: it says nothing about the next ones
            kept[run_id] = value if count <= 2 else SMOOTHING * value + (1 - SMOOTHING) * kept[run_id]

    def overdue(self, run_id: str, seconds_per_iteration: float) -> None:
        """A lease wasn't done in time: half as fast is expected from now on, until a lease is measured. Else a gang of devices that are
        much slower than they say would be given up for ever."""
        self.rates[run_id] = self.rate(run_id, seconds_per_iteration) / 2

    def forget(self, run_id: str) -> None:
        """The run has ended."""
        for kept in (self.rejected, self.leases, self.rates, self.overheads, self.ratios):
            kept.pop(run_id, None)
        self.full.discard(run_id)
        self._differs()

    def refuse(self, run_id: str) -> None:
        """A report of it for that run was refused."""
        self.rejected[run_id] = self.rejected.get(run_id, 0) + 1
        self._differs()

    def too_small(self, run_id: str) -> None:
        """A lease of that run came to nothing for want of memory: no fault of the device's, but it isn't asked again."""
        self.full.add(run_id)
        self._differs()

    def fits(self, needed_bytes: int) -> bool:
        """Whether a lease that needs so much may go there, with a margin; as far as it tells."""
        return not self.memory_bytes or MEMORY_MARGIN * needed_bytes <= self.memory_bytes

    def _differs(self) -> None:
        if self.crowd is not None:
            self.crowd.generation += 1

    def barred(self, run_id: str) -> bool:
        return self.rejected.get(run_id, 0) >= MAX_REJECTED or run_id in self.full

    def lacks(self, needed: Mapping[str, str]) -> list[str]:
        """Packages that a program needs and this worker hasn't, as far as it tells."""
        return [] if self.packages is None else lacking(needed, self.packages)

    def linked(self, said: Any) -> None:
        """Takes its link as it measured it anew; what can't be isn't believed."""
        for name, value in _link(said).items():
            setattr(self, name, value)

    @property
    def trusted(self) -> bool:
        """Whether it may sum up others' changes: the user's own machine or cloud, never a device of others."""
        return not self.simulated and self.backend != "depin" and self.profile not in EDGE

    @property
    def free(self) -> bool:
        return not self.held

    @property
    def room(self) -> bool:
        """Whether it asks for a lease and may have one more."""
        return self.parked is not None and len(self.held) < MAX_HELD


class Members(dict[str, Member]):
    """The joined workers, by Dask address. Who waits for a lease is known without asking each.

    `parked`: those that wait in a `depin_lease` call; `fresh`: those that began to since `looked`. `generation` grows with
    whatever changes who may work for a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parked: dict[str, Member] = {}
        self.fresh: dict[str, Member] = {}
        self.generation = 0

    def __setitem__(self, address: str, member: Member) -> None:
        self.pop(address, None)
        super().__setitem__(address, member)
        member.crowd = self
        self.generation += 1
        self.parks(member)

    def __delitem__(self, address: str) -> None:
        self.pop(address)

    def pop(self, address: str, *default: Any) -> Any:
        member = super().pop(address, *default)
        if isinstance(member, Member):
            member.crowd = None
            self.parked.pop(address, None)
            self.fresh.pop(address, None)
            self.generation += 1
        return member

    def parks(self, member: Member) -> None:
        """It begins or ceases to wait."""
        self.parked.pop(member.address, None)
        self.fresh.pop(member.address, None)
        if member.parked is not None:
            self.parked[member.address] = self.fresh[member.address] = member

    def looked(self) -> None:
        self.fresh.clear()


def links_of(members: Iterable[Member]) -> dict[str, dict[str, float]]:
    """By worker id, of those that say."""
    return {m.worker_id: {name: getattr(m, name) for name in LINK} for m in members if m.up_mbit_s > 0}


def member_of(address: str, profile: str, wallet: str, facts: Mapping[str, Any], session: str, now_s: float) -> Member:
    """A member from what a worker says of itself; odd facts are replaced, not believed."""
    speed = facts.get("speed", 1.0)
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or not math.isfinite(speed) or speed <= 0:
        speed = 1.0
    local, link = profile == "local", _link(facts.get("link"))
    return Member(
        address=address,
        worker_id=str(facts.get("name") or address)[:128],
        profile=profile,
        wallet=str(wallet),
        backend=str(facts.get("backend") or ("local" if local else "depin"))[:32],
        simulated=bool(facts.get("simulated", not local)),
        speed=min(max(float(speed), 1e-3), 1e4),
        session=session,
        seen_s=now_s,
        packages=checked(facts.get("packages")),
        compiles=facts.get("compiles") is not False,
        memory_bytes=_memory(facts.get("memory_bytes")),
        up_mbit_s=link.get("up_mbit_s", 0.0),
        down_mbit_s=link.get("down_mbit_s", 0.0),
        latency_ms=link.get("latency_ms", 0.0),
        process=str(facts.get("process") or "")[:64],
    )


def _memory(said: Any) -> int:
    return said if type(said) is int and 0 < said <= MAX_MEMORY_BYTES else 0


def _link(said: Any) -> dict[str, float]:
    """A worker's link as `Member` has it; nothing where any of it can't be."""
    if not isinstance(said, Mapping) or set(said) != set(LINK):
        return {}
    good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v <= LINK[name] for name, v in said.items())
    return {name: float(v) for name, v in said.items()} if good else {}


def coarse(spans: Sequence[tuple[float, float, str]], bins: int = LANE_BINS) -> tuple[tuple[float, float, str], ...]:
    """A lane as it can be drawn: in `bins` equal parts of its time, each the state that took most of it; neighbours alike are one span."""
    if not spans:
        return ()
    begin, end = spans[0][0], spans[-1][1]
    width = max(1e-3, (end - begin) / bins)
    shares: list[dict[str, float]] = [{} for _ in range(bins)]
    for a, b, state in spans:
        for i in range(int((a - begin) / width), min(bins - 1, int((b - begin) / width)) + 1):
            overlap = min(b, begin + (i + 1) * width) - max(a, begin + i * width)
            shares[i][state] = shares[i].get(state, 0.0) + max(0.0, overlap)
    lane: list[tuple[float, float, str]] = []
    for i, share in enumerate(shares):
        if not share:
            continue
        state = max(share, key=lambda s: (s == "lost", share[s]))
        a, b = round(begin + i * width, 3), round(min(end, begin + (i + 1) * width), 3)
        if lane and lane[-1][2] == state and lane[-1][1] >= a - 1e-3:
            lane[-1] = (lane[-1][0], b, state)
        else:
            lane.append((a, b, state))
    return tuple(lane)


@dataclass
class Tally:
    """What one worker did for one run; stays when the worker leaves. Times on the run's clock, in seconds."""

    worker_id: str
    profile: str
    simulated: bool
    wallet: str
    price: str
    iterations: int = 0
    samples: int = 0
    leases: int = 0
    earned: int = 0  # DPN base units
    paid: int = 0
    gone: str = ""  # "" | lost | left
    since_s: float | None = None  # start of the lease it holds
    moving: str = ""  # a long transfer that is under way, for people
    spans: deque[tuple[float, float, str]] = field(default_factory=lambda: deque(maxlen=MAX_SPANS))
    lane: tuple[tuple[float, float, str], ...] = ()  # as drawn last, at `lane_s`
    lane_s: float = -math.inf
    recent: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=16))  # (from, to, samples)

    def began(self, at_s: float) -> None:
        last = self.spans[-1][1] if self.spans else None
        if last is not None and at_s > last:
            self.spans.append((last, at_s, "wait"))
        self.since_s = at_s

    def ended(self, at_s: float, busy_s: float, *, lost: bool = False) -> None:
        """The lease came to its end; of the time since `began`, `busy_s` was work and the rest transfer."""
        start = at_s if self.since_s is None else self.since_s
        if lost:
            self.spans.append((start, at_s, "lost"))
        else:
            middle = min(at_s, start + max(0.0, busy_s)) if math.isfinite(busy_s) else at_s
            self.spans.append((start, middle, "work"))
            if at_s > middle:
                self.spans.append((middle, at_s, "send"))
        self.since_s, self.moving = None, ""

    def accepted(self, at_s: float, start_s: float, iterations: int, samples: int, units_dpn: int) -> None:
        self.iterations += iterations
        self.samples += samples
        self.leases += 1
        self.earned += units_dpn
        self.recent.append((start_s, at_s, samples))

    def draw(self, now_s: float) -> None:
        """Its lane of the last minute, at `now_s`."""
        begin = now_s - LANE_S
        spans = [(max(a, begin), b, s) for a, b, s in self.spans if b > begin]
        if self.since_s is not None:
            spans.append((max(self.since_s, begin), now_s, "work"))
        elif spans and not self.gone and now_s > spans[-1][1]:
            spans.append((spans[-1][1], now_s, "wait"))
        self.lane, self.lane_s = coarse(spans), now_s

    def device(self) -> Device:
        """As shown, with the lane that was drawn last."""
        state = self.gone or ("working" if self.since_s is not None else "waiting" if self.leases else "idle")
        speed = 0.0
        if self.recent and not self.gone:
            speed = sum(s for _, _, s in self.recent) / max(1e-3, self.recent[-1][1] - self.recent[0][0])
        return Device(
            worker_id=self.worker_id,
            name=self.worker_id,
            kind=self.profile if self.profile in KINDS else "cloud",
            simulated=self.simulated,
            state=state,
            iterations=self.iterations,
            samples=self.samples,
            samples_per_s=round(speed, 3),
            lane=self.lane,
            earned=Amount(self.earned, DPN),
            paid=Amount(self.paid, DPN),
            wallet=self.wallet,
            price=self.price,
            moving="" if self.gone else self.moving,
        )


def drawn(tallies: Iterable[Tally], now_s: float, *, at_once: int = LANES_AT_ONCE) -> list[Device]:
    """All of them as shown. Of many only some lanes are drawn anew, the oldest first: drawing is most of what a status costs."""
    found = list(tallies)
    for tally in found if len(found) <= at_once else nsmallest(at_once, found, key=lambda t: t.lane_s):
        tally.draw(now_s)
    return [tally.device() for tally in found]
