"""Changes of one round become the next version of a state. Pure: nothing that comes in is changed in place.

`merging` streams: contributions are read one at a time, slots piece by piece, and the next version is computed while it is taken (written
to a file, say). So memory holds one sum of the state's size, whatever the workers' number.

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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from depin_nb.core.codec import Promised
from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import BUFFER, COUNTER, INNER, PARAM, STEP, State

from .compress import Change
from .packed import DELTA, Packed, Rounded, pieces

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Contribution:
    """A worker's accepted lease: its weight in samples (at least 1 is counted), its last iteration, and its change or what reads it.

    `staleness`: merges between the version it was made from and this one. A change with any has to be `rebased`.
    """

    worker_id: str
    samples: int
    last_index: int
    change: Change | Callable[[], Change]
    staleness: int = 0

    def read(self) -> Change:
        return self.change if isinstance(self.change, Change) else self.change()


@dataclass(frozen=True)
class OuterState:
    """The outer optimizer's velocity by parameter slot (float32, or the slot's dtype if that is wider); empty without momentum."""

    momentum: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Following:
    """The next version and outer state. `tensors`: those that are there, and `Promised` ones, which are computed when they are taken."""

    tensors: dict[str, torch.Tensor | Promised]
    kinds: dict[str, str]
    plain: dict[str, Any]
    outer: OuterState

    def to_parts(self) -> Iterator[bytes | memoryview]:
        """The bytes of the next version in pieces, as `State.to_parts`."""
        tensors: dict[str, Any] = self.tensors
        return State(tensors, self.kinds, self.plain).to_parts()

    def state(self) -> State:
        """It in memory. Tensors that didn't change are shared with the version before."""
        return State({name: _made(t) if isinstance(t, Promised) else t for name, t in self.tensors.items()}, self.kinds, self.plain)


def nothing(nbytes: int) -> None:
    """The `touched` of a merge whose tensors lie in plain memory."""


def merge(
    base: State, contributions: Sequence[Contribution], config: StrategyConfig, outer: OuterState | None = None
) -> tuple[State, OuterState]:
    """The next version and outer state, in memory. Without contributions it is `base`. As `merging` otherwise."""
    if not contributions:
        return base, outer or OuterState()
    following = merging(base, contributions, config, outer or OuterState())
    return following.state(), following.outer


def merging(
    base: State,
    contributions: Sequence[Contribution],
    config: StrategyConfig,
    outer: OuterState,
    touched: Callable[[int], None] = nothing,
) -> Following:
    """What the version after `base` is made of; the result doesn't depend on the order of `contributions`.

    `touched` is told of bytes of base, changes and velocity that were read, so that a caller whose tensors lie in files can let go of them.
    Raises ValueError for several contributions to a solo run, and for none.
    """
    ordered = sorted(contributions, key=lambda c: (c.last_index, c.worker_id))
    alone = len(ordered) == 1 and not ordered[0].staleness
    if alone and (config.solo or config.name == "sync" or (config.outer_lr == 1 and not config.outer_momentum)):
        return _take(base, ordered[0].read(), outer)
    if config.solo or not ordered:
        raise ValueError("a solo run's leases merge one by one")
    sums = Accumulator(base, config, total=sum(_weight(c) for c in ordered), touched=touched)
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
        elif kind == PARAM and _is_float(value.dtype):
            wide = _wide(value.dtype)
            deltas[name] = value.to(wide) - old.to(wide)
        elif kind == COUNTER and (_is_float(value.dtype) or str(value.dtype) != "torch.bool"):
            values[name] = new + (value - old)
        elif _is_float(value.dtype):
            values[name] = value
    kept = {name: change.kinds[name] for name in (*values, *deltas, *change.rounded, *change.packed)}
    return Change(values, deltas, kept, rounded=change.rounded, packed=change.packed)


class Accumulator:
    """Sums contributions one at a time. `total`: the samples of all that will be added; `touched`: see `merging`.

    `add` them in loop order (ascending `last_index`), then call `finish` once.
    """

    def __init__(self, base: State, config: StrategyConfig, *, total: int, touched: Callable[[int], None] = nothing) -> None:
        self._base, self._config, self._total, self._touched = base, config, total, touched
        self._sums: dict[str, torch.Tensor] = {}  # one-dimensional
        self._sent: dict[str, float] = {}  # slot -> samples of those that sent it, late ones at their weight
        self._latest: dict[str, torch.Tensor | Rounded | Packed] = {}  # slots that aren't sums: the newest value wins
        self._kinds: dict[str, str] = {}
        self._known: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._plain = base.plain
        self._added, self._last_index = 0, -1

    def add(self, contribution: Contribution) -> None:
        """Adds one contribution; keeps none of its tensors but those that are taken as they are. ValueError when out of loop order."""
        samples = _weight(contribution)
        if contribution.last_index < self._last_index:
            raise ValueError("contributions are added in loop order")
        self._added, self._last_index = self._added + samples, contribution.last_index
        change = contribution.read()
        if change.plain is not None:
            self._plain = change.plain
        if self._config.name == "sync":
            # A slot that the last replica left alone is as the base has it, whatever the others say.
            self._latest = {n: t for n, t in self._latest.items() if self._kinds[n] not in (PARAM, INNER)}
        for name, value in _slots(change):
            kind = change.kinds[name]
            if kind in (PARAM, BUFFER, COUNTER, INNER, STEP) and self._fits(name, value):
                self._kinds[name] = kind
                self._add_slot(name, kind, value, samples / (1 + contribution.staleness) ** 0.5)

    def _fits(self, name: str, value: torch.Tensor | Rounded | Packed) -> bool:
        """Whether it has the slot's shape and dtype: where two workers made a new one in different ones, the first in loop order stays."""
        old = self._base.tensors.get(name)
        if old is not None:
            self._known[name] = (tuple(old.shape), old.dtype)
            return tuple(value.shape) == self._known[name][0]
        assert not isinstance(value, Packed), "what has no base has no difference from it"
        return self._known.setdefault(name, (tuple(value.shape), value.dtype)) == (tuple(value.shape), value.dtype)

    def _add_slot(self, name: str, kind: str, value: torch.Tensor | Rounded | Packed, samples: float) -> None:
        import torch

        old, dtype = self._base.tensors.get(name), self._known[name][1]
        if kind == COUNTER and isinstance(value, torch.Tensor) and old is not None and not _is_float(dtype) and dtype != torch.bool:
            change = (value.to(torch.int64) - old.to(torch.int64)).reshape(-1)
            self._sums[name] = self._sums[name] + change if name in self._sums else change
        elif kind == STEP and isinstance(value, torch.Tensor):
            before = self._latest.get(name)
            self._latest[name] = torch.maximum(before, value) if isinstance(before, torch.Tensor) else value
        elif not _is_float(dtype) or (self._config.name == "sync" and kind in (PARAM, INNER)):
            self._latest[name] = value
        else:
            self._add_floats(name, value, old if kind == PARAM else None, samples)

    def _add_floats(self, name: str, value: torch.Tensor | Rounded | Packed, old: torch.Tensor | None, samples: float) -> None:
        """Adds the value, less `old` where it is given, at its weight."""
        shape, dtype = self._known[name]
        total = self._sums.get(name)
        if total is None:
            total = self._sums[name] = _zeros(shape, _wide(dtype))
        weight = samples / self._total
        self._sent[name] = self._sent.get(name, 0.0) + samples
        if isinstance(value, Packed):
            value.add_to(total, weight)
            self._touched(value.numel)
            return
        before = None if old is None else old.reshape(-1)
        for at in pieces(total.numel()):
            part = _piece(value, at).to(total.dtype)
            if before is not None:
                part = part - before[at].to(total.dtype)
            total[at].add_(part, alpha=weight)
            self._touched(2 * part.numel() * part.element_size())

    def finish(self, outer: OuterState) -> Following:
        """The next version and outer state. ValueError when the samples added aren't `total`."""
        if self._added != self._total:
            raise ValueError(f"{self._added} samples were added where {self._total} were announced")
        momentum = dict(outer.momentum)
        tensors: dict[str, torch.Tensor | Promised] = dict(self._base.tensors)
        kinds = {**self._base.kinds, **self._kinds}
        for name, value in self._latest.items():
            tensors[name] = _new(self._base.tensors.get(name), value)
        for name in [*self._sums, *self._coasting(outer)]:
            old, kind = self._base.tensors.get(name), kinds[name]
            if kind == COUNTER and old is not None and not _is_float(old.dtype):
                total = self._sums[name].reshape(old.shape)
                tensors[name] = (old.to(total.dtype) + total).to(old.dtype)
            elif kind == PARAM and old is not None:
                tensors[name] = self._outer_step(name, old, momentum)
            else:
                tensors[name] = self._mean(name, kind, old)
        kinds = {name: kinds[name] for name in tensors}
        return Following(tensors, kinds, self._plain, OuterState(momentum))

    def _coasting(self, outer: OuterState) -> list[str]:
        """Parameters that nobody changed but that have velocity."""
        if not self._config.outer_momentum or self._config.name == "sync":
            return []
        kinds, fits = self._base.kinds, self._base.tensors
        return [n for n, v in outer.momentum.items() if kinds.get(n) == PARAM and n not in self._sums and v.shape == fits[n].shape]

    def _outer_step(self, name: str, old: torch.Tensor, momentum: dict[str, torch.Tensor]) -> Promised:
        step, rate = self._sums.get(name), self._config.outer_lr
        if step is None:
            step = _zeros(old.shape, _wide(old.dtype))
        if self._config.outer_momentum:
            if (velocity := momentum.get(name)) is not None and velocity.shape == old.shape:
                before = velocity.reshape(-1)
                for at in pieces(step.numel()):
                    step[at].add_(before[at], alpha=self._config.outer_momentum)
                    self._touched(step[at].numel() * step.element_size())
            momentum[name] = step.reshape(old.shape)
        flat = old.reshape(-1)

        def make() -> Iterator[torch.Tensor]:
            for at in pieces(step.numel()):
                yield (flat[at].to(step.dtype) + rate * step[at]).to(flat.dtype)

        return Promised(old.dtype, tuple(old.shape), make)

    def _mean(self, name: str, kind: str, old: torch.Tensor | None) -> Promised:
        total, share = self._sums[name], self._sent[name] / self._total
        shape, dtype = self._known[name]
        before = None if old is None or kind == INNER or share == 1 else old.reshape(-1)

        def make() -> Iterator[torch.Tensor]:
            for at in pieces(total.numel()):
                if before is not None:
                    yield (total[at] + before[at].to(total.dtype) * (1 - share)).to(dtype)
                else:
                    yield (total[at] if share == 1 else total[at] / share).to(dtype)

        return Promised(dtype, shape, make)


def _take(base: State, change: Change, outer: OuterState) -> Following:
    tensors: dict[str, torch.Tensor | Promised] = {**base.tensors}
    for name, value in _slots(change):
        tensors[name] = _new(base.tensors.get(name), value)
    kinds = {**base.kinds, **change.kinds}
    for name in change.removed:
        del tensors[name], kinds[name]  # decoding made sure that the base has it
    return Following(tensors, kinds, base.plain if change.plain is None else change.plain, outer)


def _slots(change: Change) -> Iterator[tuple[str, torch.Tensor | Rounded | Packed]]:
    yield from change.values.items()
    yield from change.rounded.items()
    yield from change.packed.items()
    for name, delta in change.deltas.items():
        yield name, Packed(DELTA, delta, tuple(delta.shape), delta.numel(), 0)


def _new(old: torch.Tensor | None, value: torch.Tensor | Rounded | Packed) -> torch.Tensor | Promised:
    """A contribution's value as the next version's."""
    if isinstance(value, Rounded):
        rounded = value
        return Promised(value.dtype, tuple(value.shape), lambda: (rounded.piece(at) for at in pieces(rounded.payload.numel())))
    if not isinstance(value, Packed):
        return value
    assert old is not None, "what has no base has no difference from it"
    flat, packed = old.reshape(-1), value

    def make() -> Iterator[torch.Tensor]:
        moved = flat.to(_wide(flat.dtype), copy=True)
        packed.add_to(moved, 1.0)
        for at in pieces(packed.numel):
            yield moved[at].to(flat.dtype)

    return Promised(old.dtype, tuple(old.shape), make)


def _made(promised: Promised) -> torch.Tensor:
    import torch

    made = torch.empty(promised.shape, dtype=promised.dtype)
    flat, at = made.reshape(-1), 0
    for piece in promised.make():
        flat[at : at + piece.numel()] = piece
        at += piece.numel()
    return made


def _weight(contribution: Contribution) -> int:
    return max(1, contribution.samples)


def _piece(value: torch.Tensor | Rounded, at: slice) -> torch.Tensor:
    return value.piece(at) if isinstance(value, Rounded) else value.reshape(-1)[at]


def _zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.zeros(tuple(shape), dtype=dtype).reshape(-1)


def _is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _wide(dtype: torch.dtype) -> torch.dtype:
    import torch

    return dtype if dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32
