"""Changes of one round become the next version of a state. Pure: nothing that comes in is changed in place.

With base w, contributions i of n_i samples (n = their sum) and changes d_i (zero for a slot that a contribution leaves alone):
- parameters: `v' = momentum * v + sum(n_i / n * d_i)`, `w' = w + outer_lr * v'`. Momentum 0 and rate 1 are plain averaging
  (FedAvg, arXiv:1602.05629); others are DiLoCo's outer SGD (arXiv:2311.08105) with heavy-ball momentum, as the change, not its negative.
- float buffers: sample-weighted mean of the values, the base's where one sent none. Integer counters: base plus the sum of changes.
- optimizer state: sample-weighted mean over those that sent it. Step counters: maximum. Plain values: those of the last in loop order that
  sent any.
- carried tensors and generators belong to a solo run; with several contributions they stay.

Two cases aren't averages, since base + (w' - base) is not w': a single contribution with rate 1 and momentum 0 (and every solo one) is
taken as it is, raw values bit for bit; and in `sync` all replicas of a gang took the same steps, so parameters and optimizer state are
those of the last contribution in loop order, a rank that took part in the last group.

A late change, made from a version `staleness` merges back, counts by its difference from that version (`rebased`) and with the weight of
1 / sqrt(1 + staleness) of its samples (FedBuff, arXiv:2106.06639, after FedAsync, arXiv:1903.03934); the rest of its weight is no change.
Counters still add up in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import BUFFER, COUNTER, INNER, PARAM, STEP, State

from .compress import Change

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Contribution:
    """A worker's accepted lease: its weight in samples (at least 1 is counted), its last iteration, and its decoded change.

    `staleness`: merges between the version it was made from and this one. A change with any is `rebased` first.
    """

    worker_id: str
    samples: int
    last_index: int
    change: Change
    staleness: int = 0


@dataclass(frozen=True)
class OuterState:
    """The outer optimizer's velocity by parameter slot (float32, or the slot's dtype if that is wider); empty without momentum."""

    momentum: dict[str, torch.Tensor] = field(default_factory=dict)


def merge(
    base: State, contributions: Sequence[Contribution], config: StrategyConfig, outer: OuterState | None = None
) -> tuple[State, OuterState]:
    """The next version and outer state. The result doesn't depend on the order of `contributions`; without any it is `base`.

    Tensors that didn't change are shared with `base`. Raises ValueError for several contributions to a solo run.
    """
    outer = outer or OuterState()
    if not contributions:
        return base, outer
    ordered = sorted(contributions, key=lambda c: (c.last_index, c.worker_id))
    if (
        len(ordered) == 1
        and not ordered[0].staleness
        and (config.solo or config.name == "sync" or (config.outer_lr == 1 and not config.outer_momentum))
    ):
        return _take(base, ordered[0].change), outer
    if config.solo:
        raise ValueError("a solo run's leases merge one by one")
    sums = Accumulator(base, config, total=sum(_weight(c) for c in ordered))
    for contribution in ordered:
        sums.add(contribution)
    return sums.finish(outer)


def rebased(change: Change, then: State, now: State) -> Change:
    """A change that was made from `then`, as one of `now`: parameters as differences, counters moved along. What is newest wins of whatever
    has no difference (plain values, integer parameters and buffers): the late ones are left out."""
    values, deltas = {}, dict(change.deltas)
    for name, value in change.values.items():
        kind, old, new = change.kinds[name], then.tensors.get(name), now.tensors.get(name)
        if old is None or new is None or kind not in (PARAM, BUFFER, COUNTER):
            values[name] = value  # optimizer state is a mean over those that sent it, a step the maximum
        elif kind == PARAM and _is_float(value):
            wide = _wide(value)
            deltas[name] = value.to(wide) - old.to(wide)
        elif kind == COUNTER and (_is_float(value) or str(value.dtype) != "torch.bool"):
            values[name] = new + (value - old)
        elif _is_float(value):
            values[name] = value
    kept = {name: change.kinds[name] for name in (*values, *deltas)}
    return Change(values, deltas, kept)


class Accumulator:
    """Sums contributions one at a time, so that memory holds one sum of the state's size and one change, whatever the workers' number.

    `total`: the samples of all that will be added. `add` them in loop order (ascending `last_index`), then call `finish` once.
    """

    def __init__(self, base: State, config: StrategyConfig, *, total: int) -> None:
        self._base, self._config, self._total = base, config, total
        self._sums: dict[str, torch.Tensor] = {}
        self._sent: dict[str, float] = {}  # slot -> samples of those that sent it, late ones at their weight
        self._latest: dict[str, torch.Tensor] = {}  # slots that aren't sums: the newest value wins
        self._kinds: dict[str, str] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._plain = base.plain
        self._added, self._last_index = 0, -1

    def add(self, contribution: Contribution) -> None:
        """Adds one contribution; keeps none of its tensors but those that are taken as they are. ValueError when out of loop order."""
        change, samples = contribution.change, _weight(contribution)
        if contribution.last_index < self._last_index:
            raise ValueError("contributions are added in loop order")
        self._added, self._last_index = self._added + samples, contribution.last_index
        if change.plain is not None:
            self._plain = change.plain
        if self._config.name == "sync":
            # A slot that the last replica left alone is as the base has it, whatever the others say.
            self._latest = {n: t for n, t in self._latest.items() if self._kinds[n] not in (PARAM, INNER)}
        for name, value in (*change.values.items(), *change.deltas.items()):
            kind = change.kinds[name]
            if kind in (PARAM, BUFFER, COUNTER, INNER, STEP):
                self._kinds[name] = kind
                self._add_slot(name, kind, value, samples / (1 + contribution.staleness) ** 0.5, is_delta=name in change.deltas)

    def _add_slot(self, name: str, kind: str, value: torch.Tensor, samples: float, *, is_delta: bool) -> None:
        import torch

        old = self._base.tensors.get(name)
        known = old if old is not None else self._sums.get(name, self._latest.get(name))
        if known is not None and known.shape != value.shape:
            return  # two workers made a new slot in different shapes: the first in loop order stays
        if kind == COUNTER and old is not None and not _is_float(old) and old.dtype != torch.bool:
            change = value.to(torch.int64) - old.to(torch.int64)
            self._sums[name] = self._sums[name] + change if name in self._sums else change
        elif kind == STEP:
            before = self._latest.get(name)
            self._latest[name] = value if before is None or before.dtype != value.dtype else torch.maximum(before, value)
        elif not _is_float(value) or (self._config.name == "sync" and kind in (PARAM, INNER)):
            self._latest[name] = value if not is_delta or old is None else (old.to(_wide(old)) + value).to(old.dtype)
        else:
            self._dtypes.setdefault(name, value.dtype if old is None else old.dtype)
            wide = _wide(value if old is None else old)
            part = value.to(wide)
            if kind == PARAM and not is_delta and old is not None:
                part = part - old.to(wide)
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(part)
            self._sums[name].add_(part, alpha=samples / self._total)
            self._sent[name] = self._sent.get(name, 0.0) + samples

    def finish(self, outer: OuterState) -> tuple[State, OuterState]:
        """The next version and outer state. ValueError when the samples added aren't `total`."""
        if self._added != self._total:
            raise ValueError(f"{self._added} samples were added where {self._total} were announced")
        momentum = dict(outer.momentum)
        tensors, kinds = dict(self._base.tensors), {**self._base.kinds, **self._kinds}
        tensors.update(self._latest)
        for name in [*self._sums, *self._coasting(outer)]:
            old, kind = self._base.tensors.get(name), kinds[name]
            if kind == COUNTER and old is not None and not _is_float(old):
                tensors[name] = (old.to(self._sums[name].dtype) + self._sums[name]).to(old.dtype)
            elif kind == PARAM and old is not None:
                tensors[name] = self._outer_step(name, old, momentum)
            else:
                tensors[name] = self._mean(name, kind, old).to(self._dtypes[name])
        kinds = {name: kinds[name] for name in tensors}
        return State(tensors, kinds, self._plain), OuterState(momentum)

    def _coasting(self, outer: OuterState) -> list[str]:
        """Parameters that nobody changed but that have velocity."""
        if not self._config.outer_momentum or self._config.name == "sync":
            return []
        return [name for name in outer.momentum if name in self._base.tensors and name not in self._sums]

    def _outer_step(self, name: str, old: torch.Tensor, momentum: dict[str, torch.Tensor]) -> torch.Tensor:
        step = self._sums.get(name)
        if self._config.outer_momentum:
            if (velocity := momentum.get(name)) is not None and velocity.shape == old.shape:
                carried = velocity * self._config.outer_momentum
                step = carried if step is None else carried + step
            if step is not None:
                momentum[name] = step
        return old if step is None else (old.to(_wide(old)) + self._config.outer_lr * step).to(old.dtype)

    def _mean(self, name: str, kind: str, old: torch.Tensor | None) -> torch.Tensor:
        total, sent = self._sums[name], self._sent[name]
        if sent == self._total:
            return total
        if kind == INNER or old is None:
            return total * (self._total / sent)
        return total + old.to(total.dtype) * ((self._total - sent) / self._total)


def _take(base: State, change: Change) -> State:
    tensors, kinds = {**base.tensors, **change.values}, {**base.kinds, **change.kinds}
    for name, delta in change.deltas.items():
        old = base.tensors[name]
        tensors[name] = (old.to(_wide(old)) + delta).to(old.dtype)
    for name in change.removed:
        del tensors[name], kinds[name]  # decoding made sure that the base has it
    return State(tensors, kinds, base.plain if change.plain is None else change.plain)


def _weight(contribution: Contribution) -> int:
    return max(1, contribution.samples)


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _wide(tensor: torch.Tensor) -> torch.dtype:
    import torch

    return tensor.dtype if tensor.dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32
