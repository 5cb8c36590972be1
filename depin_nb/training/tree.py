"""Which trusted workers sum up the changes of a round before the hub does. Pure.

A hub that takes N changes of B bytes moves N * B bytes a round through one process; measured with Dask's RPC that is flat up to about
16 changes of 10 MB. Beyond that a tree of one level takes over: each aggregator gets the changes of consecutive leases and hands on one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from depin_nb.core.lease import StrategyConfig
from depin_nb.core.parts import Buffer
from depin_nb.core.state import PARAM, State

from .compress import Change, encode_change, read_change
from .merge import Contribution, merge

if TYPE_CHECKING:
    import torch

TREE_BYTES = 160_000_000  # of a round's changes; with fewer the hub takes them all itself
FAN_IN = 16  # changes for one aggregator at most, as long as there are aggregators enough
LEAST = 2  # one change alone is no sum
BYTES_A_VALUE = {32: 4.0, 8: 1.02, 4: 0.52, 2: 0.02}  # bench/compress.py


def expected_bytes(state: State, strategy: StrategyConfig) -> int:
    """What a change will be about, where none of the run was seen yet."""
    values = sum(t.numel() for name, t in state.tensors.items() if state.kinds[name] == PARAM)
    return int(values * BYTES_A_VALUE.get(strategy.bits, 4.0))


def assigned(
    leases: Sequence[str],
    trusted: Mapping[str, float],
    change_bytes: float,
    *,
    tree_bytes: float = TREE_BYTES,
    fan_in: int = FAN_IN,
    sum_bytes: float = 0.0,
    without: Collection[str] = (),
) -> dict[str, str]:
    """{worker: its aggregator} for a round's workers `leases`, in loop order; empty where the hub takes the changes itself.

    `trusted`: workers that may sum up, by how fast their links are (Mbit/s; 0 = not known); the fastest are taken. `sum_bytes`: of one
    sum, which is in raw values: where it would be no less than what it sums up there is no tree (of sparse changes never). `tree_bytes`
    0 = always a tree, for trying it out. Consecutive leases share one aggregator, so that what is the last in loop order within the
    groups is so over all of them.
    """
    able = [name for name in trusted if name not in without]
    if len(leases) * change_bytes <= tree_bytes or len(leases) < LEAST or not able:
        return {}
    count = min(len(able), max(1, -(-len(leases) // fan_in)))
    while tree_bytes and count and len(leases) // count * change_bytes <= sum_bytes:
        count -= 1
    if not count:
        return {}
    size, more = divmod(len(leases), count)
    given: dict[str, str] = {}
    at = 0
    for number, name in enumerate(sorted(able, key=lambda name: (-trusted[name], name))[:count]):
        end = at + size + (number < more)
        given.update(dict.fromkeys(leases[at:end], name))
        at = end
    return given


def summed(base: State, contributions: Sequence[Contribution], strategy: StrategyConfig) -> bytes:
    """Several changes as one: merged as one contribution of their samples' sum it counts as they would one by one.

    Codec bytes as `encode_change` makes them with 32 bits, for `read_sum`: float parameters as differences from `base`, since a worker's
    base is near the hub's, not the same, where versions travel as steps (downlink.py).
    """
    plainly = replace(strategy, name="local", solo=False, outer_lr=1.0, outer_momentum=0.0, bits=32)
    state, _ = merge(base, contributions, plainly)
    moved = [name for name, tensor in state.tensors.items() if _moves(state.kinds[name], tensor)]
    zeros = {name: base.tensors[name].new_zeros(()).expand(base.tensors[name].shape) for name in moved}
    deltas = {name: state.tensors[name] - base.tensors[name] for name in moved}
    origin = State({**base.tensors, **zeros}, base.kinds, base.plain)
    return encode_change(origin, State({**state.tensors, **deltas}, state.kinds, state.plain), bits=32, include_inner=True)[0]


def read_sum(data: Buffer, base: State, *, max_bytes: int) -> Change:
    """What `summed` made, as a change of the hub's `base`; raises CodecError as `read_change` does."""
    change = read_change(data, base, max_bytes=max_bytes, bits=32)
    deltas = {name: value for name, value in change.values.items() if _moves(change.kinds[name], value)}
    return replace(change, values={name: value for name, value in change.values.items() if name not in deltas}, deltas=deltas)


def _moves(kind: str, tensor: torch.Tensor) -> bool:
    return kind == PARAM and tensor.is_floating_point()
