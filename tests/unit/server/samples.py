"""Sample statuses, made by the types that the hub itself uses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from depin_nb.core.amount import DPN, USD, Amount, Figure, Tag
from depin_nb.core.status import Device, Status

KINDS = ("phone", "laptop", "single-board", "phone")


def device(i: int, *, state: str = "working", busy_s: float = 4.0, **changed: Any) -> Device:
    """Simulated device `i` with a lane of work, sending and waiting over the last minute of a run that is 70 s old."""
    lane, at = [], 8.0 + i
    while at < 68:
        lane += [(at, at + busy_s, "work"), (at + busy_s, at + busy_s + 0.8, "send"), (at + busy_s + 0.8, at + busy_s + 1.6, "wait")]
        at += busy_s + 1.6
    if state == "lost":
        lane = [*lane[: len(lane) // 2], (40.0, 70.0, "lost")]
    made = Device(
        worker_id=f"tcp://127.0.0.1:{40000 + i}",
        name=f"{KINDS[i % 4]}-{i + 1} (simulated)",
        kind=KINDS[i % 4],
        simulated=True,
        state=state,
        iterations=120 + 31 * i,
        samples=3840 + 992 * i,
        samples_per_s=0.0 if state == "lost" else 96.4 + 40 * i,
        lane=tuple(lane),
        earned=Amount(2_130_000 + 710_000 * i, DPN),
        paid=Amount(1_000_000, DPN),
        price=f"0.{4 + i} DPN/TFLOP",
    )
    return replace(made, **changed)


def run(**changed: Any) -> Status:
    """A run of four simulated devices at 78 %."""
    curve = tuple((float(i), 2.2 * math.exp(-i / 90) + 0.16 + 0.05 * math.sin(i * 1.7) * math.exp(-i / 200)) for i in range(0, 312, 2))
    made = Status(
        run_id="run-7f3c",
        name="digits",
        state="running",
        strategy="local",
        where="cell 12, line 3: for x, y in loader",
        backend="depin",
        simulated=True,
        started_at=1_790_000_000.0,
        elapsed_s=70.0,
        iterations_done=312,
        iterations_total=400,
        samples_done=9984,
        samples_per_s=412.7,
        eta_s=21.0,
        loss=curve,
        devices=(device(0), device(1), device(2, state="waiting"), device(3, state="lost")),
        budget=Amount(100_000, USD),
        spent=Figure(Amount(31_200, USD), Tag.METERED),
        reserved=Amount(6_000, USD),
        rate_per_h=Figure(Amount(1_604_000, USD), Tag.ESTIMATED),
        projected=Figure(Amount(40_600, USD), Tag.ESTIMATED),
        tokens_accrued=Amount(12_780_000, DPN),
        tokens_paid=Amount(4_000_000, DPN),
        merges=9,
        notices=("phone-4 is lost; its lease is given out again.",),
    )
    return replace(made, **changed)


def ended(**changed: Any) -> Status:
    return run(
        run_id="run-11b0",
        name="warm-up",
        state="finished",
        started_at=1_789_999_000.0,
        elapsed_s=48.0,
        iterations_done=400,
        eta_s=None,
        devices=(),
        spent=Figure(Amount(38_100, USD), Tag.SETTLED),
        reserved=Amount(0, USD),
        notices=(),
        **changed,
    )


def snapshot(*runs: Status) -> dict[str, Any]:
    """As the hub's status API says it."""
    workers = [device for status in runs for device in status.to_dict()["devices"]]
    hub = {"id": "hub-test", "dashboard": "http://127.0.0.1:8787/status"}
    return {
        "hub": hub,
        "runs": [status.to_dict() for status in runs],
        "workers": workers,
    }
