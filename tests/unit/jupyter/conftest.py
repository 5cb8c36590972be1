"""A status with everything in it, for the displays."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from depin_nb.core.amount import DPN, Amount, Figure, Tag
from depin_nb.core.status import Device, Status

KINDS = ("phone", "laptop", "single-board", "phone")
SIGNATURE = "5VERv8NMvzbJMEkV8xnrLkEaWRtSz9CosKDYjCJjBRnbJLgp8uirBgmQpjKhoR4tjF3ZpRzrFmBV6UjKdiSZkQUW"
WALLET = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgA{:02d}"


def lane(seed: int, until_s: float, span_s: float) -> tuple[tuple[float, float, str], ...]:
    rng, at, spans = random.Random(seed), 0.0, []
    while at < until_s:
        for state, share in (("work", 1.0), ("send", 0.15), ("wait", 0.3)):
            end = min(until_s, at + rng.uniform(0.5, 1.5) * span_s * share)
            spans.append((at, end, state))
            at = end
    return tuple(spans)


def device(i: int, *, paid: bool = False, span_s: float = 5.0) -> Device:
    earned = Amount(812_345 - 10_000 * i, DPN)
    return Device(
        worker_id=f"w{i}",
        name=f"{KINDS[i % 4]}-{i + 1} (simulated)",
        kind=KINDS[i % 4],
        simulated=True,
        state="working",
        iterations=100 - i,
        samples=3200,
        samples_per_s=120.5 / (i + 1),
        lane=lane(i, 92.0, span_s),
        earned=earned,
        paid=earned if paid else Amount(0, DPN),
        wallet=WALLET.format(i),
        price="0.40 DPN/TFLOP",
    )


@pytest.fixture
def sample() -> Callable[..., Status]:
    """`sample(devices=4, points=200, state="running", span_s=5.0, **fields)`."""

    def build(devices: int = 4, points: int = 200, state: str = "running", span_s: float = 5.0, **fields: Any) -> Status:
        done = state == "finished"
        given: dict[str, Any] = {
            "run_id": "run-7f3c",
            "name": "digits",
            "state": state,
            "strategy": "local, 50 inner steps, 4 bits",
            "where": "cell 3, line 4: for i, (x, y) in enumerate(loader)",
            "backend": "depin",
            "simulated": True,
            "started_at": 1.7e9,
            "elapsed_s": 92.0,
            "iterations_done": 600 if done else 412,
            "iterations_total": 600,
            "samples_done": 13_184,
            "samples_per_s": 143.2,
            "eta_s": None if done else 42.0,
            "loss": tuple((i * 3.0, 2.4 * math.exp(-i / 60) + 0.06) for i in range(points)),
            "devices": tuple(device(i, paid=done, span_s=span_s) for i in range(devices)),
            "budget": Amount(100_000),
            "spent": Figure(Amount(61_200), Tag.METERED),
            "reserved": Amount(8_000),
            "rate_per_h": Figure(Amount(2_387_000), Tag.ESTIMATED),
            "projected": Figure(Amount(89_000), Tag.ESTIMATED),
            "tokens_accrued": Amount(2_712_345, DPN),
            "tokens_paid": Amount(2_712_345 if done else 0, DPN),
            "signatures": (SIGNATURE,) if done else (),
            "merges": 12,
            "bytes_up": 1_240_000,
            "bytes_down": 3_400_000,
            "notices": ("single-board-3 was lost; its lease was taken over",),
        }
        return Status(**{**given, **fields})

    return build
