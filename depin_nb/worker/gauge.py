"""Whether a link still is what it was measured as: each large transfer is compared with what it should have taken. Pure.

A transfer is no measurement: others may travel beside it, and the hub takes its time as well. So two in a row that are far off, the same
way, only mean that the link is measured anew; where that finds what was known, the next doubt has to wait twice as long.
"""

from __future__ import annotations

from collections.abc import Mapping

LARGE_BYTES = 64 << 10  # smaller transfers say more of the round trip than of the rate
FAR = 2.0  # so many times slower or faster than it should have been
SLACK_S = 0.25  # what the hub may take beside it
IN_A_ROW = 2
AGAIN_S = 60.0  # between measurements at least
LONGEST_S = 3600.0
MBIT_S = 1e6 / 8


class Gauge:
    """One worker's link. Times in seconds (monotonic); `link` as `HubLink.measured` gives it."""

    def __init__(self) -> None:
        self._link: Mapping[str, float] | None = None
        self._pause_s, self._after_s = AGAIN_S, 0.0
        self._odd = 0  # transfers in a row: below 0 too fast, above too slow

    def measured(self, link: Mapping[str, float], now_s: float) -> None:
        """The link was measured."""
        before, self._link, self._odd = self._link, dict(link), 0
        same = before is not None and all(1 / FAR < link[way] / before[way] < FAR for way in ("up_mbit_s", "down_mbit_s"))
        self._pause_s = min(2 * self._pause_s, LONGEST_S) if same else AGAIN_S
        self._after_s = now_s + self._pause_s

    def passed(self, up_bytes: int, down_bytes: int, took_s: float) -> None:
        """A transfer is through."""
        if self._link is None or max(up_bytes, down_bytes) < LARGE_BYTES:
            return
        rates = self._link["up_mbit_s"] * MBIT_S, self._link["down_mbit_s"] * MBIT_S
        expected_s = up_bytes / rates[0] + down_bytes / rates[1] + self._link["latency_ms"] / 1e3
        way = 1 if took_s > FAR * expected_s + SLACK_S else -1 if took_s < expected_s / FAR else 0
        self._odd = self._odd + way if way * self._odd >= 0 and way else way

    def doubted(self, now_s: float) -> bool:
        """Whether the link has to be measured anew."""
        return abs(self._odd) >= IN_A_ROW and now_s >= self._after_s
