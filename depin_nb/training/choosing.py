"""Which strategy suits a fleet: from its slowest measured link, the model's size and the time of a step. Pure; no torch.

`sync` exchanges whole gradients at every step, `local` 4-bit changes a few times an entry, `sparse` a twenty-fifth of these. The first that
its link carries without holding the devices up is taken; `sparse` only where it makes rounds much shorter, in runs that are long enough for
what it leaves out to arrive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SYNC_SHARE = 0.1  # most of a step's time that averaging gradients may take
LOCAL_SHARE = 0.1  # most of a round's time that its transfers may take
SPARSE_GAIN = 1.25  # how much faster rounds have to become for what sparse leaves out; of small models the round trip is most
LONG_RUN = 60  # merges from which on sparse is no worse than local (bench/sparse_steps.py: worse at 32, better at 128)
BYTES = {"sync": 4.0, "local": 0.516, "sparse": 0.02}  # a parameter on its way up (docs/training.md)
DOWN_BYTES = {"sync": 4.0, "local": 0.516, "sparse": 0.516}  # at most, for sparse


@dataclass(frozen=True)
class Link:
    """The slowest link of a fleet as measured: bytes/s either way, seconds of a round trip."""

    up_bytes_s: float
    down_bytes_s: float
    latency_s: float

    def transfer_s(self, name: str, values: int) -> float:
        """How long one exchange of strategy `name` takes for a model of so many parameters."""
        return self.latency_s + values * (BYTES[name] / self.up_bytes_s + DOWN_BYTES[name] / self.down_bytes_s)


@dataclass(frozen=True)
class Load:
    """What is to be done. `values`: parameters; `step_s`: an iteration on an average device; `inner_steps`: of a worker between merges;
    `merges`: of the whole run, None when its length isn't known."""

    values: int
    step_s: float
    inner_steps: int
    merges: float | None


def suited(link: Link, load: Load) -> tuple[str, str]:
    """`(strategy, why)`, the reason in plain words with the figures that decided."""
    step_s, round_s = max(load.step_s, 1e-6), max(load.step_s * load.inner_steps, 1e-6)
    mbit_s = min(link.up_bytes_s, link.down_bytes_s) * 8e-6
    links = f"links of {_figure(mbit_s)} Mbit/s"
    sync_s, local_s = link.transfer_s("sync", load.values), link.transfer_s("local", load.values)
    if sync_s <= SYNC_SHARE * step_s:
        return "sync", f"{links} average the gradients of {load.values:,} parameters in {_percent(sync_s / step_s)} of a step"
    takes = f"over {links} a merge of {load.values:,} parameters in 4 bits takes {_time(local_s)}, the work before it {_time(round_s)}"
    if local_s <= LOCAL_SHARE * round_s:
        return "local", takes
    sparse_s = link.transfer_s("sparse", load.values)
    if round_s + local_s < SPARSE_GAIN * (round_s + sparse_s):
        return "local", f"{takes}, and sparse would still take {_time(sparse_s)}"
    if load.merges is None or load.merges < LONG_RUN:
        known = "the run's length isn't known" if load.merges is None else f"about {math.ceil(load.merges)} merges are too few"
        return "local", f"{takes}, and {known} for sparse"
    return "sparse", f"{takes}; only the largest changes {_time(sparse_s)}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %" if share >= 0.01 else "under 1 %"


def _time(seconds: float) -> str:
    return f"{_figure(1e3 * seconds)} ms" if seconds < 1 else f"{_figure(seconds)} s"
