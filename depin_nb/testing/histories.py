"""Histories: who takes part in a run and what goes wrong when, drawn from a seed. Printable, repeatable, made smaller when one fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from ..core.lease import StrategyConfig

STRATEGIES: dict[str, StrategyConfig] = {
    "solo": StrategyConfig(),
    "local": StrategyConfig(name="local", solo=False, inner_steps=3, bits=32),
    "local, 4 bits": StrategyConfig(name="local", solo=False, inner_steps=4, bits=4, outer_momentum=0.3, down_bits=4),
    "local, quick to merge": StrategyConfig(name="local", solo=False, inner_steps=2, bits=32, quorum=0.25),
    "sync": StrategyConfig(name="sync", solo=False, inner_steps=3),
}
PROFILES = ("phone", "laptop", "single-board")
LIES = ("garbage", "too many", "too few", "another's", "no logs", "nan", "no dict", "not finite", "slot", "bits")

# kind -> the points at which it may come, for a device; {who} is what it happens to
DEVICE_POINTS = ("asks", "leased", "fetches", "works", "reports", "reported")
DEVICE_KINDS = {
    "kill": DEVICE_POINTS,
    "stop": DEVICE_POINTS,
    "cut": DEVICE_POINTS,
    "vanish": DEVICE_POINTS,
    "slow": ("asks", "fetches", "reports"),
    "duplicate": ("asks", "reports"),
    "reorder": ("asks", "reports"),
    "late": ("leased", "reports", "reported"),
    "lie": ("reports",),
    "refuse": ("reports",),
}
HUB_DIES_AT = ("leased", "works", "reports", "reported")  # of a device's lease
HUB_POINTS = (
    "job", "job done", "journal: begins", "journal: writes", "journal: written", "file: written", "file: named", "ledger", "change: kept",
)  # fmt: skip
DISK_POINTS = ("journal: begins", "journal: writes", "file: written", "change: kept")
NOTEBOOK_KINDS = ("pause", "halt", "budget", "die", "interrupt", "cut", "share")


@dataclass(frozen=True)
class Fault:
    """`kind` happens to `who` at `point` of its `lease`-th lease (of a hub: at the `lease`-th time it comes to that point; of a notebook:
    at its `lease`-th answer). `for_s`: how long it lasts, or until it is back. `lie`: what a lying report says.
    `hub`: the hub is killed then."""

    kind: str
    who: str
    lease: int
    point: str
    for_s: float = 0.0
    lie: str = ""

    def __str__(self) -> str:
        said = f" ({self.lie})" if self.lie else ""
        lasts = f", for {self.for_s:g} s" if self.for_s else ""
        return f"{self.kind} {self.who}{said} at {self.point} #{self.lease}{lasts}"


@dataclass(frozen=True)
class DevicePlan:
    """`unsteady`: how much longer, as a share of its time, a lease may take than the device's speed says."""

    name: str
    profile: str
    speed: float
    latency_s: float
    joins_s: float
    unsteady: float = 0.0
    trusted: bool = False


@dataclass(frozen=True)
class NotebookPlan:
    """A user's cell: `entries` passes over a loop of `total` iterations of `unit_s`. `leaves_at`: iteration of its last pass that leaves
    the loop. `budget`: in percent of what all work costs, None = none. `resumes`: whether it goes on after its hub or kernel died.
    `reconnects`: whether the same cell goes on at the next hub.
    `weight`, `priority`: its share."""

    name: str
    strategy: str
    total: int
    known: bool
    entries: int
    unit_s: float
    starts_s: float
    leaves_at: int | None
    how: str
    budget: int | None
    resumes: bool
    batch: int
    reconnects: bool = True
    weight: float = 1.0
    priority: str = "normal"


@dataclass(frozen=True)
class History:
    """`seed` alone makes it; `faults` may be fewer than were drawn. `ends`: how the hub is ended last, `closed` or `killed`.
    `part_bytes`: what is larger travels in parts of so many bytes, 0 = as in ordinary runs. `one_machine`: its devices share a cache.
    `tree`: trusted devices sum up the others' changes, however small."""

    seed: int
    devices: tuple[DevicePlan, ...]
    notebooks: tuple[NotebookPlan, ...]
    faults: tuple[Fault, ...]
    kept: tuple[int, ...]
    ends: str
    part_bytes: int = 0
    one_machine: bool = False
    tree: bool = False

    def __str__(self) -> str:
        parts = f", parts of {self.part_bytes} bytes" if self.part_bytes else ""
        parts += ", a tree of aggregators" if self.tree else ""
        machine = ", all on one machine" if self.one_machine else ""
        lines = [f"history {self.seed}: the hub is {self.ends} at the end{parts}{machine}"]
        for d in self.devices:
            kind = "local, trusted" if d.trusted else d.profile
            lines.append(
                f"  {d.name}: {kind}, speed {d.speed:g}, {d.latency_s:g} s away, joins at {d.joins_s:g} s, {d.unsteady:g} unsteady"
            )
        for n in self.notebooks:
            left = "" if n.leaves_at is None else f", {n.how} at {n.leaves_at}"
            money = "" if n.budget is None else f", budget {n.budget} %"
            length = n.total if n.known else f"{n.total} (not told)"
            again = ", reconnects" * n.reconnects + ("" if n.resumes else ", gives up")
            share = "" if (n.weight, n.priority) == (1.0, "normal") else f", weight {n.weight:g}, {n.priority}"
            lines.append(
                f"  {n.name}: {n.strategy}, {n.entries} x {length} iterations of {n.unit_s:g} s, {n.batch} ahead,"
                f" starts at {n.starts_s:g} s{left}{money}{again}{share}"
            )
        lines += [f"  [{i}] {f}" for i, f in zip(self.kept, self.faults, strict=True)]
        return "\n".join(lines)

    def only(self, kept: Collection[int]) -> History:
        """With these of its faults alone, by number."""
        chosen = [(i, f) for i, f in zip(self.kept, self.faults, strict=True) if i in kept]
        return replace(self, faults=tuple(f for _, f in chosen), kept=tuple(i for i, _ in chosen))


def history(seed: int) -> History:
    """The history of that seed, always the same one."""
    rng = random.Random(f"depin-nb history {seed}")
    devices = tuple(
        DevicePlan(
            f"w{i + 1}",
            rng.choice(PROFILES),
            round(rng.choice((0.25, 0.5, 1, 1, 2, 4)) * rng.uniform(0.8, 1.2), 2),
            rng.choice((0.0, 0.002, 0.02, 0.1)),
            rng.choice((0.0, 0.0, 0.0, 0.5, 2.0, 6.0)),
            rng.choice((0.0, 0.0, 1.0, 5.0, 20.0)),
        )
        for i in range(rng.choice((1, 2, 2, 3, 3, 4)))
    )
    notebooks = tuple(_notebook(rng, f"n{i + 1}") for i in range(rng.choice((1, 1, 1, 1, 2))))
    back = random.Random(f"depin-nb reconnects {seed}")
    notebooks = tuple(replace(n, reconnects=back.random() < 0.8) for n in notebooks)
    notebooks = _shared(random.Random(f"depin-nb shares {seed}"), notebooks)
    faults = tuple(_fault(rng, devices, notebooks) for _ in range(rng.choice((1, 2, 2, 3, 4, 6, 9))))
    ends = rng.choice(("closed", "closed", "killed"))
    part_bytes, one_machine = rng.choice((0, 0, 300, 700)), rng.random() < 0.5
    if part_bytes:
        faults += tuple(_broken_transfer(rng, devices) for _ in range(rng.choice((0, 1, 2))))
    tree = bool(part_bytes) and rng.random() < 0.6
    if tree:
        devices = _with_aggregators(rng, devices)
        notebooks = tuple(_summed(rng, n) for n in notebooks)
        faults += tuple(_lost_aggregator(rng, devices) for _ in range(rng.choice((0, 1, 2))))
    faults += tuple(
        Fault("hub", back.choice(devices).name, back.choice((1, 1, 2, 2, 3, 4)), back.choice(HUB_DIES_AT))
        for _ in range(back.choice((0, 0, 1, 2)))
    )
    return History(seed, devices, notebooks, faults, tuple(range(len(faults))), ends, part_bytes, one_machine, tree)


def _notebook(rng: random.Random, name: str) -> NotebookPlan:
    total, entries = rng.choice((1, 2, 5, 8, 12, 17, 24, 60)), rng.choice((1, 1, 2))
    return NotebookPlan(
        name=name,
        strategy=rng.choice(("solo", "local", "local", "local, 4 bits", "local, quick to merge", "sync", "sync")),
        total=total,
        known=rng.random() < 0.7,
        entries=entries,
        unit_s=rng.choice((0.05, 0.2, 0.5)),
        starts_s=rng.choice((0.0, 0.0, 1.0, 3.0)),
        leaves_at=rng.randrange(total) if rng.random() < 0.25 else None,
        how=rng.choice(("break", "return", "error")),
        budget=rng.choice((None, None, 400, 150, 60)),
        resumes=rng.random() < 0.8,
        batch=rng.choice((1, 4, 100, 100)),
    )


def _shared(rng: random.Random, notebooks: tuple[NotebookPlan, ...]) -> tuple[NotebookPlan, ...]:
    """Shares, drawn apart so that the rest of a history stays what it was; now and then one or two notebooks more than were drawn."""
    if rng.random() < 0.2:
        notebooks += tuple(_notebook(rng, f"n{len(notebooks) + i + 1}") for i in range(rng.choice((1, 2))))
    if len(notebooks) < 2:
        return notebooks
    return tuple(
        replace(n, weight=rng.choice((0.5, 1.0, 1.0, 3.0)), priority=rng.choice(("high", "normal", "normal", "low"))) for n in notebooks
    )


def _fault(rng: random.Random, devices: tuple[DevicePlan, ...], notebooks: tuple[NotebookPlan, ...]) -> Fault:
    where = rng.random()
    for_s = rng.choice((0.1, 1.0, 5.0, 20.0, 60.0))
    if where < 0.6:
        who = rng.choice(devices).name
        kind = rng.choice(sorted(DEVICE_KINDS))
        point = rng.choice(DEVICE_KINDS[kind])
        lie = rng.choice(LIES) if kind == "lie" else ""
        return Fault(kind, who, rng.choice((1, 1, 2, 2, 3, 4, 6)), point, for_s, lie)
    if where < 0.85:
        kind = rng.choice(("kill", "kill", "kill", "disk", "wall", "stop"))
        point = rng.choice(DISK_POINTS if kind == "disk" else HUB_POINTS)
        for_s = rng.choice((-86400.0, -5.0, 60.0, 86400.0)) if kind == "wall" else for_s
        return Fault(kind, "hub", rng.choice((1, 2, 3, 5, 8, 13, 21, 34, 55)), point, for_s)
    return Fault(rng.choice(NOTEBOOK_KINDS), rng.choice(notebooks).name, rng.choice((1, 2, 3, 5)), "answered", for_s)


def _broken_transfer(rng: random.Random, devices: tuple[DevicePlan, ...]) -> Fault:
    kind = rng.choice(("cut", "cut", "kill", "stop", "vanish", "late", "duplicate"))
    return Fault(kind, rng.choice(devices).name, rng.choice((1, 1, 2, 3, 4)), "parts", rng.choice((0.1, 1.0, 5.0, 20.0)))


def _with_aggregators(rng: random.Random, devices: tuple[DevicePlan, ...]) -> tuple[DevicePlan, ...]:
    """At least three, so that there is something to sum up; the first is trusted, and often slow: it has the others' changes meanwhile."""
    more = tuple(replace(devices[0], name=f"w{i + 1}", speed=rng.choice((1.0, 3.0))) for i in range(len(devices), 3))
    speed = devices[0].speed * rng.choice((0.3, 0.5, 1.0))
    rest = (replace(d, trusted=rng.random() < 0.4) for d in (*devices[1:], *more))
    return replace(devices[0], speed=round(max(0.25, speed), 2), trusted=True), *rest


def _summed(rng: random.Random, notebook: NotebookPlan) -> NotebookPlan:
    """Mostly a loop of which changes are summed up."""
    if rng.random() < 0.2 and notebook.strategy != "sync":  # a gang of slow and unsteady devices never ends in time
        return notebook
    strategy = rng.choice(("local", "local, 4 bits", "local, quick to merge"))
    return replace(notebook, leaves_at=None, strategy=strategy, total=rng.choice((8, 12, 17, 24)))


def _lost_aggregator(rng: random.Random, devices: tuple[DevicePlan, ...]) -> Fault:
    """Mostly when it is the last one at work: the others' changes wait at it."""
    trusted = [d.name for d in devices if d.trusted]
    kind = rng.choice(("kill", "kill", "vanish", "cut", "stop", "hub", "hub"))
    point = rng.choice(("works", "reports", "reported") if kind == "hub" else ("asks", "works", "works", "reports", "reported"))
    return Fault(kind, rng.choice(trusted), rng.choice((1, 2, 3, 4)), point, 0.0 if kind == "hub" else rng.choice((0.1, 1.0, 20.0)))


def shrunk(found: History, fails: Callable[[History], bool]) -> History:
    """The history with as few of its faults as still make it fail: one after the other is left out."""
    smallest = found
    for number in found.kept:
        smaller = smallest.only([i for i in smallest.kept if i != number])
        if fails(smaller):
            smallest = smaller
    return smallest
