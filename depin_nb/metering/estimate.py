"""What a run would take and cost, side by side: on this machine, on the fleet, on rented machines. From a probe; spends nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from depin_nb.core.amount import DPN, USD, Amount, Figure, Tag

from .meter import lease_cost
from .price import FLOPS_PER_TFLOP, Instance, PriceBook

SECONDS_PER_H = 3600


@dataclass(frozen=True)
class Probe:
    """What the first iterations showed on this machine, and how the strategy will merge.

    `merges`: how many times state travels in all; `up_bytes`, `down_bytes`: per worker and merge.
    """

    flops_per_iteration: int
    seconds_per_iteration: float
    iterations: int
    merges: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(frozen=True)
class FleetDevice:
    """One device of the fleet as the backend describes it: speed relative to this machine, and its link (0 = as fast as can be)."""

    profile: str
    speed: float
    up_bits_per_s: float = 0.0
    down_bits_per_s: float = 0.0
    latency_s: float = 0.0


@dataclass(frozen=True)
class EstimateRow:
    """One choice. `time_s` is estimated; `price_per_h` is the quoted list price; `assumption`: what it all rests on."""

    name: str
    kind: str  # this machine | fleet | cloud | depin
    workers: int
    time_s: float
    cost: Figure
    tokens: Figure
    price_per_h: Figure | None
    simulated: bool
    assumption: str
    dated: str

    def text(self) -> str:
        """One line for people."""
        name = self.name + (" (simulated)" if self.simulated else "")
        parts = [name, f"{duration_text(self.time_s)} {Tag.ESTIMATED.value}", str(self.cost)]
        if self.tokens.amount:
            parts.append(str(self.tokens))
        if self.price_per_h is not None:
            parts.append(f"{self.price_per_h.amount.text()}/h {self.price_per_h.tag.value} {self.dated}")
        return " · ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, figures as {units, currency, tag}."""
        figures = {name: value.to_dict() for name in ("cost", "tokens", "price_per_h") if (value := getattr(self, name)) is not None}
        return {**asdict(self), **figures}


def estimate(probe: Probe, book: PriceBook, *, fleet: Sequence[FleetDevice] = (), local_workers: int = 1) -> list[EstimateRow]:
    """This machine first, then the fleet if there is one, then the catalog's machines from the cheapest run up.

    `local_workers`: processes on this machine, which share its cores: no speed-up is assumed.
    """
    rows = [_this_machine(probe, book, local_workers)]
    if fleet:
        rows.append(_fleet(probe, book, fleet))
    rented = [_instance(probe, book, instance) for instance in book.instances]
    return rows + sorted(rented, key=lambda row: (row.cost.amount.units, row.time_s))


def _this_machine(probe: Probe, book: PriceBook, workers: int) -> EstimateRow:
    return EstimateRow(
        name="this machine",
        kind="this machine",
        workers=workers,
        time_s=probe.iterations * probe.seconds_per_iteration,
        cost=Figure(Amount(0, USD), Tag.ESTIMATED),
        tokens=Figure(Amount(0, DPN), Tag.ESTIMATED),
        price_per_h=None,
        simulated=False,
        assumption="the probe's time for an iteration; your own machine costs nothing here",
        dated=book.dated,
    )


def _fleet(probe: Probe, book: PriceBook, fleet: Sequence[FleetDevice]) -> EstimateRow:
    """Each device gets iterations by its speed, so all compute equally long; a merge waits for the slowest link."""
    speed = sum(device.speed for device in fleet)
    if speed <= 0:
        raise ValueError("a fleet needs devices of some speed")
    compute_s = probe.iterations * probe.seconds_per_iteration / speed
    link_s = probe.merges * max(_link_s(probe, device) for device in fleet)
    units = 0
    for device in fleet:
        share = Fraction(device.speed) / Fraction(speed)
        units += lease_cost(book, device.profile, math.ceil(share * probe.flops_per_iteration * probe.iterations)).units
    tokens = Amount(units, DPN)
    return EstimateRow(
        name=f"depin, {len(fleet)} devices",
        kind="fleet",
        workers=len(fleet),
        time_s=compute_s + link_s,
        cost=Figure(book.to_usd(tokens), Tag.ESTIMATED),
        tokens=Figure(tokens, Tag.ESTIMATED),
        price_per_h=None,
        simulated=True,
        assumption="speeds and links of the device profiles, leases cut by speed, nobody leaves; prices of a simulated market",
        dated=book.dated,
    )


def _link_s(probe: Probe, device: FleetDevice) -> float:
    up_s = probe.up_bytes * 8 / device.up_bits_per_s if device.up_bits_per_s else 0.0
    down_s = probe.down_bytes * 8 / device.down_bits_per_s if device.down_bits_per_s else 0.0
    return up_s + down_s + 2 * device.latency_s


def _instance(probe: Probe, book: PriceBook, instance: Instance) -> EstimateRow:
    sustained = instance.peak_tflops * book.speed.share_of_peak * FLOPS_PER_TFLOP  # FLOP/s
    step_s = max(float(probe.flops_per_iteration / sustained), book.speed.min_step_s)
    time_s = instance.startup_s + probe.iterations * step_s
    return EstimateRow(
        name=f"{instance.provider} {instance.name}",
        kind=instance.kind,
        workers=1,
        time_s=time_s,
        cost=Figure(rent(instance, time_s), Tag.ESTIMATED),
        tokens=Figure(Amount(0, DPN), Tag.ESTIMATED),
        price_per_h=Figure(instance.per_h, Tag.QUOTED),
        simulated=False,
        assumption=f"{float(instance.peak_tflops * book.speed.share_of_peak):.3g} TFLOP/s sustained ({book.speed.source}); "
        f"{instance.startup_s} s to start; billed by {instance.granularity_s} s, at least {instance.minimum_s} s",
        dated=book.dated,
    )


def rent(instance: Instance, seconds: float) -> Amount:
    """What that machine costs for so long, by its billing rule: whole steps of `granularity_s`, at least `minimum_s`."""
    steps = math.ceil(Fraction(max(seconds, instance.minimum_s)) / instance.granularity_s)
    return instance.per_h.times(Fraction(steps * instance.granularity_s, SECONDS_PER_H))


def duration_text(seconds: float) -> str:
    """For people: `0.8 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < SECONDS_PER_H:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // SECONDS_PER_H} h {whole % SECONDS_PER_H // 60} min"
