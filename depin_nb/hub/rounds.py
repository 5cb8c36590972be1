"""What the next leases are: pure arithmetic on units, speeds and times. Who gets them and when is leasing.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from depin_nb.core.lease import StrategyConfig

SOLO_TARGET_S = 1.0  # a solo lease takes about so long: displays stay live
SOLO_LIVE_S = 3.0  # or up to so long where handing it in costs more than SOLO_SHARE of it
SOLO_LONGEST_S = 60.0  # or up to so long where it costs more than a tenth: a thin link
SOLO_SHARE = 0.02
SOLO_FIRST = 2
SOLO_MAX = 512
SOLO_AHEAD_S = 3.0  # units fed ahead for a solo worker
DEADLINE_FACTOR = 6.0
DEADLINE_MIN_S = 10.0
FIRST_LEASE_S = 30.0  # opening a program imports torch and what the cell imports
SLOWEST_LINK_BYTES_S = 62_500.0  # 0.5 Mbit/s: a device with less doesn't get its lease done anyway


@dataclass(frozen=True)
class Pace:
    """What a deadline is made from. `rate`: iterations/s; `overhead_s`: what this device's leases of this run took beside their work,
    None before the first; `transfer_bytes`: what it may have to move."""

    units: int
    rate: float
    overhead_s: float | None
    transfer_bytes: int

    def deadline_s(self) -> float:
        """Seconds until the lease is given to somebody else. Generous: being early throws work away, being late costs a round."""
        expected_s = self.units / self.rate + (self.overhead_s or 0.0)
        allowed_s = max(DEADLINE_MIN_S, DEADLINE_FACTOR * expected_s) + self.transfer_bytes / SLOWEST_LINK_BYTES_S
        return allowed_s + (FIRST_LEASE_S if self.overhead_s is None else 0.0)


def solo_length(previous: int, rate: float | None, overhead_s: float = 0.0) -> int:
    """Iterations of the next solo lease: doubling up to what takes about a second, or longer where a lease's `overhead_s` (what it takes
    beside its work) would be much of that; small before the first measurement."""
    if rate is None:
        return SOLO_FIRST
    target_s = max(SOLO_TARGET_S, min(overhead_s / SOLO_SHARE, SOLO_LIVE_S), min(overhead_s * 10, SOLO_LONGEST_S))
    return max(1, min(2 * previous, int(rate * target_s), SOLO_MAX))


def round_units(kind: str, config: StrategyConfig, workers: int, length: int) -> int:
    """Units of one round with that many workers: the size at which it may open without waiting for more."""
    return max(1, length) if kind == "solo" else max(1, config.inner_steps) * max(1, workers)


def ahead(kind: str, config: StrategyConfig, workers: int, length: int, rate: float | None) -> int:
    """Units that should be queued: about two rounds, so that the next round never waits for the kernel."""
    if kind != "solo":
        return 2 * round_units(kind, config, workers, length)
    return max(8, 4 * length, min(2 * SOLO_MAX, int((rate or 0.0) * SOLO_AHEAD_S)))


def fair_share(workers: int, solo_runs: int, spread_runs: int) -> int:
    """Most workers of a round for one of several runs; each solo run needs one."""
    return max(1, -(-(workers - solo_runs) // max(1, spread_runs)))


def fastest(rates: Mapping[str, float]) -> str:
    """The worker with the highest rate; by name among equals."""
    return min(rates, key=lambda worker: (-rates[worker], worker))
