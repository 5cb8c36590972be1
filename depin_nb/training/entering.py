"""What a loop entry begins with, as what differs from the version that kernel and hub both have: slots that nobody changed stay away.

Slots are compared by a digest over name, kind, dtype, shape and bits, so that a tensor written in place counts as changed and one that
was replaced by an equal one doesn't. The hub compares its own slots before it takes one for the kernel's: whatever either forgot, an
entry begins on exactly the kernel's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

from depin_nb.core.codec import encode
from depin_nb.core.state import INNER, STEP, State

from .compress import decode_change, encode_change, same_bits

if TYPE_CHECKING:
    import torch

SLOT_DIGEST_BYTES = 16


def slot_digest(name: str, kind: str, tensor: torch.Tensor) -> bytes:
    """SLOT_DIGEST_BYTES that stand for one slot's name, kind, dtype, shape and bits. No protection against anybody."""
    import torch

    plain = tensor.detach().contiguous()
    digest = blake2b(encode((name, kind, str(plain.dtype), list(plain.shape))), digest_size=SLOT_DIGEST_BYTES)
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def slot_digests(state: State) -> dict[str, bytes]:
    """The digest of every slot."""
    return {name: slot_digest(name, state.kinds[name], tensor) for name, tensor in state.tensors.items()}


def without(state: State, known: Mapping[str, bytes]) -> tuple[State, dict[str, bytes]]:
    """`(what differs from `known`, {slot: digest} of what doesn't)`. Plain values are always in the first: they are small."""
    now = slot_digests(state) if known else {}
    same = {name: digest for name, digest in now.items() if known.get(name) == digest}
    part = {name: tensor for name, tensor in state.tensors.items() if name not in same}
    return State(part, {name: state.kinds[name] for name in part}, state.plain), same


def composed(base: State | None, part: State, same: Mapping[str, bytes]) -> State | None:
    """The state that `without` took apart, with `base`'s tensors for `same`; None where `base` hasn't these very slots."""
    if not same:
        return part
    if base is None or any(name in part.tensors or name not in base.tensors for name in same):
        return None
    if any(slot_digest(name, base.kinds[name], base.tensors[name]) != digest for name, digest in same.items()):
        return None
    tensors = {**{name: base.tensors[name] for name in same}, **part.tensors}
    return State(tensors, {name: base.kinds[name] if name in same else part.kinds[name] for name in tensors}, part.plain)


# --- optimizer state: each worker goes on with its own as long as the notebook leaves it alone ---------


def same_inner(before: State, after: State) -> bool:
    """Whether nobody has touched optimizer state: the same INNER and STEP slots, bit for bit."""
    mine, theirs = (inner_of(state).tensors for state in (before, after))
    return mine.keys() == theirs.keys() and all(mine[n] is theirs[n] or same_bits(mine[n], theirs[n]) for n in mine)


def inner_of(state: State) -> State:
    """The state's optimizer state alone."""
    names = [name for name, kind in state.kinds.items() if kind in (INNER, STEP)]
    return State({name: state.tensors[name] for name in names}, {name: state.kinds[name] for name in names})


def holding_inner(newest: State, held: State | None) -> State:
    """`newest` with the moments that `held` has: who goes on with its own has no use for others."""
    if held is None:
        return newest
    moments = {name: tensor for name, tensor in held.tensors.items() if held.kinds[name] == INNER}
    tensors = {name: t for name, t in newest.tensors.items() if newest.kinds[name] != INNER} | moments
    return State(tensors, {name: INNER if name in moments else newest.kinds[name] for name in tensors}, newest.plain)


def inner_to_bytes(state: State) -> bytes:
    """The state's optimizer state for a worker that has none of its own: 8 bits a value (`inner.py`)."""
    return encode_change(State(), inner_of(state), bits=8, include_inner=True)[0]


def inner_from_bytes(data: bytes, *, max_bytes: int) -> State:
    """What `inner_to_bytes` wrote. Raises CodecError for anything else."""
    change = decode_change(data, State(), max_bytes=max_bytes)
    return inner_of(State(change.values, change.kinds))
