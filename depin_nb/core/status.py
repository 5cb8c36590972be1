"""One frozen snapshot per run. Every display (panel, sidebar, text, HTML, CLI) is a function of it and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .amount import DPN, USD, Amount, Figure, Tag

ACTIVE = ("planning", "running", "paused", "stopping", "waiting")  # waiting: for its notebook, after a hub was killed
ENDED = ("finished", "interrupted", "stopped", "budget", "failed")


@dataclass(frozen=True)
class Device:
    """A worker as shown: who it is, what it does, what it earned.

    `lane`: recent spans (start_s, end_s, state) on the run's clock, state one of `work`, `wait`, `send`, `lost`.
    """

    worker_id: str
    name: str
    kind: str  # local | phone | laptop | single-board | cloud
    simulated: bool
    state: str  # idle | working | waiting | lost | left
    iterations: int = 0
    samples: int = 0
    samples_per_s: float = 0.0
    lane: tuple[tuple[float, float, str], ...] = ()
    earned: Amount = Amount(0, DPN)
    paid: Amount = Amount(0, DPN)
    wallet: str = ""
    price: str = ""  # for people: "0.4 DPN/TFLOP" or "$0.10/h"
    up_mbit_s: float = 0.0  # its link to the hub, as it measured it when it joined; 0 = not known
    down_mbit_s: float = 0.0
    latency_ms: float = 0.0
    moving: str = ""  # for people, while a long transfer is under way: "fetching 12 of 40 MB"


@dataclass(frozen=True)
class Status:
    """A run at one moment. Times in seconds; `_at` is wall time; None = not known."""

    run_id: str
    name: str
    state: str
    strategy: str
    where: str  # "cell 12, line 3: for x, y in loader"
    backend: str  # local | depin
    simulated: bool
    started_at: float
    elapsed_s: float = 0.0
    entry: int = 0
    iterations_done: int = 0
    iterations_total: int | None = None
    samples_done: int = 0
    samples_per_s: float = 0.0
    eta_s: float | None = None
    loss: tuple[tuple[float, float], ...] = ()  # (iteration over all entries, loss), decimated to at most 200 points
    devices: tuple[Device, ...] = ()
    budget: Amount | None = None
    spent: Figure = Figure(Amount(0, USD), Tag.METERED)
    reserved: Amount = Amount(0, USD)
    rate_per_h: Figure = Figure(Amount(0, USD), Tag.ESTIMATED)
    projected: Figure | None = None
    tokens_accrued: Amount = Amount(0, DPN)
    tokens_paid: Amount = Amount(0, DPN)
    signatures: tuple[str, ...] = ()
    merges: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    notices: tuple[str, ...] = ()
    user: str = ""  # as its kernel says
    weight: float = 1.0
    priority: str = "normal"

    @property
    def share(self) -> str:
        """Its part in the devices, for people: `ada, weight 2, high`; what is usual isn't said."""
        weight = f"weight {self.weight:g}" if self.weight != 1 else ""
        return ", ".join(part for part in (self.user, weight, self.priority if self.priority != "normal" else "") if part)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def fraction(self) -> float | None:
        if self.state == "finished":
            return 1.0
        return min(1.0, self.iterations_done / self.iterations_total) if self.iterations_total else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON: amounts become {units, currency}, figures {units, currency, tag}."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Status:
        data = dict(data)
        data["devices"] = tuple(device_from_dict(d) for d in data["devices"])
        data["loss"] = tuple((float(x), float(y)) for x, y in data["loss"])
        data["budget"] = None if data["budget"] is None else Amount.from_dict(data["budget"])
        data["projected"] = None if data["projected"] is None else Figure.from_dict(data["projected"])
        for name in ("spent", "rate_per_h"):
            data[name] = Figure.from_dict(data[name])
        for name in ("reserved", "tokens_accrued", "tokens_paid"):
            data[name] = Amount.from_dict(data[name])
        for name in ("signatures", "notices"):
            data[name] = tuple(data[name])
        return cls(**data)


def device_from_dict(data: dict[str, Any]) -> Device:
    lane = tuple((float(a), float(b), str(s)) for a, b, s in data["lane"])
    return Device(**{**data, "lane": lane, "earned": Amount.from_dict(data["earned"]), "paid": Amount.from_dict(data["paid"])})


def _plain(value: Any) -> Any:
    if isinstance(value, (Amount, Figure)):
        return value.to_dict()
    if isinstance(value, Device):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
