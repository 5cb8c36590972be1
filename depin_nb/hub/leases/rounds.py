"""What the next leases are: pure arithmetic on units, speeds and times. Who gets them and when is giving.py's."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from depin_nb.core.lease import StrategyConfig

SOLO_TARGET_S = 1.0  # a solo lease takes about so long: displays stay live
SOLO_LIVE_S = 3.0  # or up to so long where handing it in costs more than SOLO_SHARE of it
SOLO_LONGEST_S = 60.0  # or up to so long where it costs more than a tenth: a thin link
SOLO_SHARE = 0.02
SOLO_FIRST = 2
SOLO_MAX = 512
SOLO_AHEAD_S = 3.0  # units fed ahead for a solo worker
DEADLINE_FACTOR = 6.0  # of what is expected, before a device has a history
DEADLINE_MIN_S = 10.0
HISTORY_MIN = 3  # leases from which a spread says something
HISTORY_MAX = 16
SIGMA = 1.4826  # of a normal distribution, in median absolute deviations (Rousseeuw and Croux, doi:10.1080/01621459.1993.10476408)
LATE_SIGMAS = 4.0  # beyond that a lease is given to somebody else as well
DEADLINE_SIGMAS = 12.0  # beyond that it is taken away
SPREAD_MIN = 0.1  # of the median: nobody is as regular as three leases may look
GAIN = 1.5  # a duplicate has to be expected so much sooner
TRANSFER_SHARE = 0.1  # of a lease of local, at most, for handing its change in
PATIENCE = 0.25  # of a round: small enough to keep devices busy, large enough that those that keep time merge together
PATIENCE_FIRST = 1.0  # for a device of which nothing is known yet: it opens the program
PATIENCE_MIN_S = 1.0  # shorter than that is the noise of a machine that does other things too
SILENT_S = 2.5  # a device that speaks twice a second and is silent for so long is not waited for
SILENT_MAX_S = 60.0  # or for so long, where it was silent before and came back: some code doesn't let anything else run
FIRST_LEASE_S = 30.0  # opening a program imports torch and what the cell imports
SLOWEST_LINK_BYTES_S = 62_500.0  # 0.5 Mbit/s: a device with less doesn't get its lease done anyway


def allowance(ratios: Sequence[float], sigmas: float) -> float | None:
    """How many times what is expected a device's lease may take, from its own history of took / expected in this run: the median plus
    `sigmas` times the spread. None as long as the history is short."""
    if len(ratios) < HISTORY_MIN:
        return None
    middle = median(ratios)
    spread = max(SIGMA * median(abs(r - middle) for r in ratios), SPREAD_MIN * middle)
    return middle + sigmas * spread


@dataclass(frozen=True)
class Pace:
    """What a lease's times are made from. `rate`: iterations/s; `overhead_s`: what this device's leases of this run took beside their
    work, None before the first; `transfer_bytes`: what it may have to move; `ratios`: took / expected of its latest leases."""

    units: int
    rate: float
    overhead_s: float | None
    transfer_bytes: int
    ratios: tuple[float, ...] = ()

    @property
    def expected_s(self) -> float:
        return self.units / self.rate + (self.overhead_s or 0.0)

    @property
    def known(self) -> bool:
        """Whether what is expected rests on more than the device's first lease, which opened the program."""
        return bool(self.ratios)

    @cached_property
    def late_s(self) -> float:
        """Seconds after which the lease is late by the device's own measure; infinite where it has none yet."""
        factor = allowance(self.ratios, LATE_SIGMAS)
        return math.inf if factor is None else factor * self.expected_s

    def deadline_s(self) -> float:
        """Seconds until the lease is taken away. Generous: being early throws work away, and who is late is doubled before."""
        factor = allowance(self.ratios, DEADLINE_SIGMAS)
        if factor is not None:
            return max(DEADLINE_MIN_S, factor * self.expected_s)
        allowed_s = max(DEADLINE_MIN_S, DEADLINE_FACTOR * self.expected_s) + self.transfer_bytes / SLOWEST_LINK_BYTES_S
        return allowed_s + (FIRST_LEASE_S if self.overhead_s is None else 0.0)


def holds_up(waited_s: float, elapsed_s: float, pace: Pace, round_s: float) -> bool:
    """Whether a lease begun `elapsed_s` ago keeps those waiting for too long who have made a quorum since `waited_s`, in a round that took
    them `round_s`: it is expected to take more than PATIENCE of the round on top. Who is overdue is expected to need as long again as it is
    overdue; of a device's first two leases nothing is expected."""
    if not pace.known:
        return waited_s > max(PATIENCE_MIN_S, PATIENCE_FIRST * round_s)
    return waited_s + abs(pace.expected_s - elapsed_s) > max(PATIENCE_MIN_S, PATIENCE * round_s)


def quorum_s(came: Sequence[tuple[float, int]], out: int, quorum: float) -> float | None:
    """When the reports of a round became a quorum: (time, samples) of each one, and the samples that are still `out`. None: they aren't."""
    wanted, ready = quorum * (sum(samples for _, samples in came) + out), 0
    for at_s, samples in sorted(came):
        ready += samples
        if ready >= wanted:
            return at_s
    return None


def worth_doubling(elapsed_s: float, pace: Pace, needed_s: float, *, silent: bool, at_end: bool) -> bool:
    """Whether a lease that was begun `elapsed_s` ago is given to an idle device too, which would need `needed_s`.

    At once if its own device is `silent`. Else where it is late by that device's own measure, or at the loop's end, when
    the idle one is expected to be done sooner by GAIN. Who is overdue is expected to need as long again as it is overdue.
    """
    if silent:
        return True
    if pace.overhead_s is None:  # its first lease: nothing is known
        return False
    overdue_s = elapsed_s - pace.expected_s
    remaining_s = -overdue_s if overdue_s < 0 else 2 * overdue_s
    return (at_end or elapsed_s > pace.late_s) and GAIN * needed_s < remaining_s


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


def lease_steps(config: StrategyConfig, rates: Collection[float], transfer_s: float) -> int:
    """Iterations that a worker of ordinary speed does in the next round: as many as take `lease_s`, or as long as makes the transfer of a
    change (`transfer_s`, of the slowest link) less than TRANSFER_SHARE of the lease; at most `inner_steps`. `rates`: iterations/s."""
    if not config.lease_s or not rates:
        return max(1, config.inner_steps)
    target_s = max(config.lease_s, transfer_s / TRANSFER_SHARE)
    return max(1, min(config.inner_steps, round(target_s * sum(rates) / len(rates))))


def ahead(kind: str, config: StrategyConfig, workers: int, length: int, rate: float | None) -> int:
    """Units that should be queued: about two rounds, so that the next round never waits for the kernel."""
    if kind != "solo":
        return 2 * round_units(kind, config, workers, length)
    return max(8, 4 * length, min(2 * SOLO_MAX, int((rate or 0.0) * SOLO_AHEAD_S)))


def fastest(rates: Mapping[str, float]) -> str:
    """The worker with the highest rate; by name among equals."""
    return min(rates, key=lambda worker: (-rates[worker], worker))
