"""Builds the one `Status` of a run, and the devices of the hub, from what the coordinator holds. Reads only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from depin_nb.core.amount import DPN, Amount, Figure, Tag
from depin_nb.core.status import Device, Status
from depin_nb.hub.leases.members import LANES_AT_ONCE, Member, Tally, drawn
from depin_nb.hub.run import Run
from depin_nb.metering.price import PriceBook

WINDOW_S = 60.0


def samples_per_s(tallies: Iterable[Tally], now_s: float) -> float:
    """Samples merged per second over the last minute (over the last merges, where rounds take longer)."""
    recent = [span for tally in tallies for span in tally.recent]
    if not recent:
        return 0.0
    newest = max(to for _, to, _ in recent)
    window = [span for span in recent if span[1] > newest - WINDOW_S]
    span_s = max(now_s, newest) if not window else max(newest, now_s - WINDOW_S) - min(begin for begin, _, _ in window)
    return sum(count for _, _, count in window) / max(1e-3, span_s)


def status_of(run: Run, prices: PriceBook, now_s: float) -> Status:
    """The run at monotonic time `now_s`."""
    clock_s = run.clock(run.ended_s if run.ended_s is not None else now_s)
    entry = run.entry
    spec = entry.spec if entry is not None else None
    total = run.total if spec is None or spec.total is None else run.done_before + spec.total - spec.first
    if total is not None and run.passes is not None and spec is not None and spec.total is not None and not run.ended:
        total = max(total, run.passes * spec.total)
    speed = 0.0 if run.ended else samples_per_s(run.tallies.values(), clock_s)
    remaining = None if total is None else max(0, total - run.iterations)
    per_iteration = run.samples / run.iterations if run.iterations else 0.0
    eta_s = None
    if remaining is not None and not run.ended and speed > 0 and per_iteration > 0:
        eta_s = round(remaining * per_iteration / speed, 1)
    spent = prices.to_usd(run.budget.spent)
    settled = run.settled and run.ended
    at_once = len(run.tallies) if run.ended else LANES_AT_ONCE
    return Status(
        run_id=run.run_id,
        name=run.name,
        state=run.state,
        strategy=run.strategy,
        where=run.where,
        backend=run.backend,
        simulated=run.simulated,
        started_at=run.started_at,
        elapsed_s=round(clock_s, 3),
        entry=run.entries,
        iterations_done=run.iterations,
        iterations_total=total,
        samples_done=run.samples,
        samples_per_s=round(speed, 3),
        eta_s=eta_s,
        loss=run.curve.decimated(),
        devices=tuple(drawn(run.tallies.values(), clock_s, at_once=at_once)),
        budget=run.cap,
        spent=Figure(spent, Tag.SETTLED if settled else Tag.METERED),
        reserved=prices.to_usd(run.budget.reserved),
        rate_per_h=run.meter.rate_per_h(clock_s),
        projected=None if run.ended else run.meter.projected(remaining),
        tokens_accrued=run.budget.spent,
        tokens_paid=Amount(sum(t.paid for t in run.tallies.values()), DPN),
        signatures=run.signatures,
        merges=run.merges,
        bytes_up=run.bytes_up,
        bytes_down=run.bytes_down,
        notices=tuple(run.notices),
        user=run.claim.user,
        weight=run.claim.weight,
        priority=run.claim.priority,
    )


def device_of(member: Member, prices: PriceBook, tallies: Iterable[Tally]) -> Device:
    """A worker of the hub, over all active runs."""
    mine = list(tallies)
    return Device(
        worker_id=member.worker_id,
        name=member.worker_id,
        kind=member.profile,
        simulated=member.simulated,
        state="working" if member.held else "idle",
        iterations=sum(t.iterations for t in mine),
        samples=sum(t.samples for t in mine),
        earned=Amount(sum(t.earned for t in mine), DPN),
        paid=Amount(sum(t.paid for t in mine), DPN),
        wallet=member.wallet,
        price=prices.price(member.profile).text(),
        up_mbit_s=round(member.up_mbit_s, 2),
        down_mbit_s=round(member.down_mbit_s, 2),
        latency_ms=round(member.latency_ms, 2),
    )


def device_dict(device: Device) -> dict[str, Any]:
    """A device as JSON, as within `Status.to_dict()`."""
    data = {f.name: getattr(device, f.name) for f in fields(device)}
    return {**data, "lane": [list(span) for span in device.lane], "earned": device.earned.to_dict(), "paid": device.paid.to_dict()}
