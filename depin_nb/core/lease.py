"""What travels between kernel, hub and workers: plain frozen types with `to_dict`/`from_dict` for msgpack."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

SOLO_SEATS = 8  # solo entries that may live on one worker, taking turns


@dataclass(frozen=True)
class StrategyConfig:
    """How leases become one model.

    `name`: `sync` (mean gradient at every backward, over all workers), `local` (`inner_steps` steps, then a merge) or `sparse` (as `local`,
    but of large parameters only the largest changes travel).
    `solo`: one worker runs all leases in order in one living namespace (exact; bit-identical with `sync`).
    `inner_steps`: iterations a worker of ordinary speed does between merges (`local`), or a gang does together (`sync`).
    `outer_lr`, `outer_momentum`: the outer step of `local` and `sparse` (1 and 0 = plain averaging).
    `lease_s`: how long a lease of `local` or `sparse` is to take, within `inner_steps`; 0: `inner_steps` whatever the time.
    `quorum`: share of a round's samples with which a merge of `local` or `sparse` may go ahead without the rest (1: it waits for all).
    `bits`: how a change travels: 32 (raw new values), 8 or 4 (block-wise integers with error feedback), 1 (the largest three tenths of the
    values, 1.5 bits a value in all), 2 (far fewer of the largest, for `sparse`).
    `down_bits`: how a new version travels to workers: 32 (whole), 8, 4 or 1 (a step from the one that they hold).
    """

    name: str = "sync"
    solo: bool = True
    inner_steps: int = 50
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    bits: int = 32
    error_feedback: bool = True
    down_bits: int = 32
    quorum: float = 0.5
    lease_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StrategyConfig:
        return cls(**data)


@dataclass(frozen=True)
class EntrySpec:
    """One loop entry (each epoch of a cell is a new one): what a worker needs to run any iteration of it.

    `program`: digest of the program blob (opened by workers only). `blobs`: digests that the program refers to.
    `total`: number of iterations, None when unknown. `seed`: iterations' RNG seeds derive from (seed, iteration).
    `flops_per_iteration`, `seconds_per_iteration`, `memory_bytes`: from the probe.
    `first`: index of the entry's first iteration (after a solo worker was lost, an entry goes on in a new one).
    `limit_s`: 0 for a loop; else the one unit is a whole cell, which may take so many seconds and is reserved and charged by time.
    `contiguous`: the body may leave the loop early, so that no iteration may be merged before all earlier ones are.
    `packages`: {distribution: version} that a worker needs; one that lacks some gets no lease of it.
    """

    program: str
    blobs: tuple[str, ...]
    strategy: StrategyConfig
    total: int | None
    seed: int
    flops_per_iteration: int
    seconds_per_iteration: float
    memory_bytes: int
    samples_per_iteration: int = 1
    first: int = 0
    packages: dict[str, str] = field(default_factory=dict)
    limit_s: float = 0.0
    contiguous: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EntrySpec:
        data = dict(data)
        return cls(**{**data, "blobs": tuple(data["blobs"]), "strategy": StrategyConfig.from_dict(data["strategy"])})


@dataclass(frozen=True)
class Unit:
    """One iteration's share of the user's iterable: `data` is codec bytes (index batch, range value or item); `samples` weighs it."""

    index: int
    data: bytes
    samples: int


DRAWN_BYTES = 8


def drawn_digest(data: bytes) -> bytes:
    """DRAWN_BYTES that stand for a unit's data: whether a resumed cell draws the same items. No protection against anybody."""
    return blake2b(data, digest_size=DRAWN_BYTES).digest()


@dataclass(frozen=True)
class Lease:
    """Iterations lent to one worker. Keyed by (run, entry, base version, units, seed): running it twice gives the same result.

    `units` are in loop order and, for `local` and solo, contiguous. For `sync` with several workers the lease is one rank's part of
    a gang: `gang` is the gang's id, `rank`/`size` the place in it, and unit i of the lease belongs to group `groups[i]`.
    `aggregator`: the Dask address of the worker that takes its change in the hub's place; "" = the hub takes it with the report.
    `group_samples[i]` is the number of samples of the whole group of unit i, `group_size[i]` how many ranks take part in it.
    """

    lease_id: str
    run_id: str
    entry_id: int
    base_version: int
    units: tuple[Unit, ...]
    final: bool = False
    gang: str = ""
    rank: int = 0
    size: int = 1
    groups: tuple[int, ...] = ()
    group_samples: tuple[int, ...] = ()
    group_size: tuple[int, ...] = ()
    base_iteration: int = 0
    aggregator: str = ""

    @property
    def first(self) -> int:
        return self.units[0].index

    @property
    def samples(self) -> int:
        return sum(unit.samples for unit in self.units)

    def to_dict(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**data, "units": [(u.index, u.data, u.samples) for u in self.units]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Lease:
        lists = {k: tuple(data[k]) for k in ("groups", "group_samples", "group_size")}
        return cls(**{**data, **lists, "units": tuple(Unit(*u) for u in data["units"])})


@dataclass(frozen=True)
class Report:
    """What a worker hands in for a lease: all of it data, none of it trusted.

    `logs`: one codec-encoded log per finished iteration, in order (opaque to the hub). `change`: codec bytes of the state change.
    `left`: codec bytes of the names that the loop leaves behind. `exit`: "" or `break`, `return`, `error`: the body left the loop
    in the last iteration logged. `losses`: (iteration index, loss) for the curve. `flops`: as counted by the worker, informative.
    """

    lease_id: str
    done: int
    logs: tuple[bytes, ...]
    change: bytes
    left: bytes = b""
    exit: str = ""
    losses: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        return cls(**{**data, "logs": tuple(data["logs"]), "losses": tuple((int(i), float(v)) for i, v in data["losses"])})
