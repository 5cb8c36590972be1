"""What a run has cost so far, at which rate, and what it will cost. Pure: time is passed in, amounts are integers."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

from depin_nb.core.amount import DPN, USD, Amount, Figure, Tag

from .price import FLOPS_PER_TFLOP, PriceBook

WINDOW_S = 30.0  # the rate is read over so many seconds: longer than a lease, short enough to follow a worker that leaves


def lease_cost(book: PriceBook, profile: str, flops: int) -> Amount:
    """What `flops` floating point operations of accepted work cost on that profile, in DPN, rounded up to a base unit.

    Raises ConfigError for an unknown profile and ValueError for negative work.
    """
    if flops < 0:
        raise ValueError("work can't be negative")
    return book.price(profile).per_tflop.times(Fraction(flops, FLOPS_PER_TFLOP))


class Meter:
    """One run's accrued tokens and dollars. Every figure it gives has a tag."""

    def __init__(self, book: PriceBook, *, window_s: float = WINDOW_S) -> None:
        self._book = book
        self._window_s = window_s
        self._accrued: dict[str, int] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._started_s: float | None = None
        self._iterations = 0

    def start(self, at_s: float) -> None:
        """The run's first moment: until the window is full, the rate is over the time since then."""
        self._started_s = at_s

    def charge(self, worker_id: str, cost: Amount, iterations: int, at_s: float) -> None:
        """An accepted lease: its cost in DPN and the iterations it did, at `at_s` (seconds on any clock that grows)."""
        units = (Amount(0, DPN) + cost).units
        if units < 0 or iterations < 0:
            raise ValueError("a charge can't be negative")
        if self._started_s is None:
            self._started_s = at_s
        self._accrued[worker_id] = self._accrued.get(worker_id, 0) + units
        self._iterations += iterations
        self._recent.append((at_s, units))

    def accrued(self, worker_id: str | None = None) -> Amount:
        """Tokens owed to one worker, or to all."""
        return Amount(self._accrued.get(worker_id, 0) if worker_id is not None else sum(self._accrued.values()), DPN)

    def spent(self) -> Figure:
        """The accrued tokens in USD at the book's quote."""
        return Figure(self._book.to_usd(self.accrued()), Tag.METERED)

    def rate_per_h(self, now_s: float) -> Figure:
        """USD per hour over the sliding window that ends at `now_s`."""
        while self._recent and self._recent[0][0] <= now_s - self._window_s:
            self._recent.popleft()
        if self._started_s is None:
            return Figure(Amount(0, USD), Tag.ESTIMATED)
        span_s = max(1.0, min(self._window_s, now_s - self._started_s))
        recent = Amount(sum(units for _, units in self._recent), DPN)
        return Figure(self._book.to_usd(recent.times(Fraction(3600) / Fraction(span_s))), Tag.ESTIMATED)

    def projected(self, remaining_iterations: int | None) -> Figure | None:
        """What the run will have cost at its end: spent, and the mean cost of an iteration so far for each that remains.

        None while nothing is known: no iteration done yet, or an unknown number remaining.
        """
        if remaining_iterations is None or (not self._iterations and remaining_iterations):
            return None
        accrued = self.accrued()
        if remaining_iterations > 0:
            accrued = accrued + accrued.times(Fraction(remaining_iterations, self._iterations))
        return Figure(self._book.to_usd(accrued), Tag.ESTIMATED)
