"""Prices: what devices ask per TFLOP, what one DPN is worth, and what clouds list. Read from a dated catalog; no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Any

from depin_nb.core.amount import DPN, USD, Amount, Figure, Tag
from depin_nb.core.errors import ConfigError

CATALOG = "devices-2026-11.json"
FLOPS_PER_TFLOP = 10**12


@dataclass(frozen=True)
class DevicePrice:
    """What a device profile asks for one TFLOP (10^12 floating point operations) of accepted work. `simulated`: not a real market."""

    profile: str
    per_tflop: Amount  # DPN
    simulated: bool
    source: str
    sustained_tflops: float = 0.0  # TFLOP/s, for work that is paid by time; 0 = not known

    def text(self) -> str:
        """For people: `0.15 DPN/TFLOP (simulated)`, or `free`."""
        if not self.per_tflop:
            return "free"
        return f"{self.per_tflop.text()}/TFLOP{' (simulated)' if self.simulated else ''}"


@dataclass(frozen=True)
class Instance:
    """A machine one can rent by the hour. `peak_tflops`: vendor's float32 peak without tensor cores, in TFLOP/s, of the whole machine."""

    provider: str
    kind: str  # cloud | depin
    name: str
    per_h: Amount  # USD, list price
    peak_tflops: Fraction
    granularity_s: int
    minimum_s: int
    startup_s: int


@dataclass(frozen=True)
class Speed:
    """The assumption that turns a peak into a sustained speed: `share_of_peak`, and `min_step_s`, the shortest an iteration takes."""

    share_of_peak: Fraction
    min_step_s: float
    source: str


@dataclass(frozen=True)
class PriceBook:
    """One dated catalog. `usd_micro_per_dpn`: micro-dollars for one whole DPN, a simulated quote."""

    version: str
    dated: str
    usd_micro_per_dpn: int
    rate_source: str
    devices: Mapping[str, DevicePrice]
    instances: tuple[Instance, ...]
    instances_source: str
    speed: Speed

    def price(self, profile: str) -> DevicePrice:
        """The price of a device profile. Raises ConfigError for a profile that the catalog lacks."""
        found = self.devices.get(profile)
        if found is None:
            raise ConfigError(f"no price for the device profile {profile!r}", hint=f"Known: {', '.join(self.devices)}.")
        return found

    def to_usd(self, amount: Amount) -> Amount:
        """A DPN amount in USD at the catalog's quote, rounded up to a micro-dollar. USD amounts are returned as they are.

        Convert totals, not many small parts: every rounding adds up to one micro-dollar.
        """
        if amount.currency.code == USD.code:
            return amount
        _only_dpn(amount)
        return Amount(amount.times(self._usd_per_unit).units, USD)

    def to_dpn(self, amount: Amount) -> Amount:
        """A USD amount in DPN, rounded down: what a budget in dollars can buy at most. DPN amounts are returned as they are."""
        if amount.currency.code == DPN.code:
            return amount
        exact = Fraction(amount.units) / self._usd_per_unit
        return Amount(exact.numerator // exact.denominator, DPN)

    @property
    def _usd_per_unit(self) -> Fraction:
        return Fraction(self.usd_micro_per_dpn, 10**DPN.decimals)

    def quote(self) -> Figure:
        """One DPN in USD."""
        return Figure(Amount(self.usd_micro_per_dpn, USD), Tag.QUOTED)

    def text(self) -> str:
        """For people: the quote with its date and origin."""
        return f"1 DPN = {self.quote()} ({self.dated}, {self.rate_source})"


def _only_dpn(amount: Amount) -> None:
    Amount(0, DPN) + amount  # raises AmountError for any other currency


@cache
def load(name: str = CATALOG) -> PriceBook:
    """The catalog shipped under that file name. Raises ConfigError when it is missing or malformed."""
    try:
        data = json.loads((files(__package__) / "catalog" / name).read_text(encoding="utf-8"))
        return from_dict(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the price catalog {name} can't be read: {error}") from error


def from_dict(data: Mapping[str, Any]) -> PriceBook:
    """A PriceBook from a catalog's JSON. Raises KeyError, ValueError or TypeError when it is malformed."""
    devices = {
        profile: DevicePrice(
            profile,
            Amount(row["dpn_units_per_tflop"], DPN),
            bool(row["simulated"]),
            str(row["source"]),
            float(row.get("sustained_tflops", 0.0)),
        )
        for profile, row in data["devices"].items()
    }
    instances = tuple(
        Instance(
            provider=str(row["provider"]),
            kind=str(row["kind"]),
            name=str(row["name"]),
            per_h=Amount(row["usd_micro_per_h"], USD),
            peak_tflops=Fraction(row["peak_tflops"]),
            granularity_s=int(row["granularity_s"]),
            minimum_s=int(row["minimum_s"]),
            startup_s=int(row["startup_s"]),
        )
        for row in data["instances"]
    )
    rate, speed = data["rate"], data["speed"]
    if int(rate["usd_micro_per_dpn"]) <= 0 or any(device.per_tflop.units < 0 for device in devices.values()):
        raise ValueError("prices can't be negative, nor a quote zero")
    return PriceBook(
        version=str(data["version"]),
        dated=str(data["dated"]),
        usd_micro_per_dpn=int(rate["usd_micro_per_dpn"]),
        rate_source=str(rate["source"]),
        devices=devices,
        instances=instances,
        instances_source=str(data["instances_source"]),
        speed=Speed(Fraction(speed["share_of_peak"]), float(speed["min_step_s"]), str(speed["source"])),
    )
