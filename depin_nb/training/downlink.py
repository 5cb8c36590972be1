"""A run's versions on their way to workers: steps from the version that they hold to the next one.

All workers of a run hold the same *reference*, near its newest version. A step is the quantised difference between the newest version
and the reference; applied, it makes the next reference, the very same on hub and workers, which `digest_of` checks. Since each step is
taken from what workers hold, what one loses is in the next: errors don't add up (error feedback, arXiv:1901.09847, at the sender).

Only large floating parameters are quantised, and optimizer state is rounded to bfloat16, as it is on the way up. Everything else that
changed travels whole, so that it is exact in every reference.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError
from depin_nb.core.state import INNER, KINDS, PARAM, State

from .compress import same_bits
from .packed import DENSE_BITS
from .quantize import BLOCK, quantize
from .sparse import CHUNK, MANY, densify, sparsify
from .thin import restored, thinned

if TYPE_CHECKING:
    import torch

DIGEST_BYTES = 16
STEP_BITS = (1, 4, 8)
ROUNDED = ("float32", "float64")  # dtypes of optimizer state that travels as bfloat16


def encode_step(held: State, new: State, *, bits: int) -> tuple[bytes, State]:
    """`(codec bytes, after)`: the step from `held` towards `new`, and what a worker that held the one holds after it.

    `bits`: of each value of a large parameter's difference, 4 or 8, or 1 (`sparse.py`). Tensors that didn't change are shared.
    """
    if bits not in STEP_BITS:
        raise CodecError(f"steps of {bits} bits aren't offered", hint="Use 1, 4 or 8, or send versions whole.")
    return step_from(State(dict(held.tensors), held.kinds, held.plain), new, bits=bits, touched=lambda nbytes: None)


def step_from(held: State, new: State, *, bits: int, touched: Callable[[int], None]) -> tuple[bytes, State]:
    """As `encode_step`; `held.tensors` is used up: each tensor in it is replaced as soon as the next one is made, so that both states are
    never there at once. `touched` is told of the bytes that were read of each."""
    slots: dict[str, tuple[str, Any]] = {}
    after = held.tensors
    for name, value in new.tensors.items():
        kind = new.kinds[name]
        old = after.get(name) if held.kinds.get(name) == kind else None
        touched(2 * value.nbytes)
        if old is not None and same_bits(old, value):
            continue
        payload, after[name] = _packed(kind, old, value, bits)
        if old is None or not same_bits(old, after[name]):
            slots[name] = kind, payload
    removed = [name for name in after if name not in new.tensors]
    for name in removed:
        del after[name]
    plain = None if encode(held.plain) == encode(new.plain) else new.plain
    data = encode({"bits": bits, "slots": slots, "removed": removed, "plain": plain})
    return data, State(after, {name: new.kinds[name] for name in after}, new.plain)


def _packed(kind: str, old: torch.Tensor | None, value: torch.Tensor, bits: int) -> tuple[Any, torch.Tensor]:
    """How a slot travels, and what it becomes."""
    import torch

    if kind == INNER and (name := str(value.dtype).removeprefix("torch.")) in ROUNDED:
        rounded = value.detach().to(torch.bfloat16)
        return (rounded, name), rounded.to(value.dtype)
    if old is not None and _coarse(kind, old) and (old.shape, old.dtype) == (value.shape, value.dtype):
        difference = (value.detach().to(_wide(old)) - old.to(_wide(old))).float().reshape(-1)
        payload: tuple[Any, ...]
        if _sparse(old, bits):
            payload, delta = sparsify(difference, MANY)
            scales = payload[-1]
        else:
            packed, scales, delta = quantize(difference, DENSE_BITS[bits])
            payload = thinned(packed, scales, DENSE_BITS[bits])
        moved = _moved(old, delta)
        if bool(scales.isfinite().all()) and bool(moved.isfinite().all()):
            return payload, moved
    return value, value


def apply_step(held: State, data: bytes | bytearray | memoryview, *, max_bytes: int) -> State:
    """What `held` becomes. Raises CodecError for bytes that aren't a step from it; `digest_of` tells whether it is the right one."""
    import torch

    message = decode(data, max_bytes=max_bytes)
    if type(message) is not dict or set(message) != {"bits", "slots", "removed", "plain"}:
        raise CodecError("not a step")
    bits, slots, removed, plain = (message[key] for key in ("bits", "slots", "removed", "plain"))
    if type(bits) is not int or bits not in STEP_BITS or type(slots) is not dict or type(removed) is not list:
        raise CodecError("a step's parts are malformed")
    if plain is not None and type(plain) is not dict:
        raise CodecError("a step's plain values are malformed")
    tensors, kinds = dict(held.tensors), dict(held.kinds)
    for name, entry in slots.items():
        if type(name) is not str or type(entry) is not tuple or len(entry) != 2 or type(entry[0]) is not str or entry[0] not in KINDS:
            raise CodecError("a step's slot is malformed")
        kind, payload = entry
        old = held.tensors.get(name)
        if isinstance(payload, torch.Tensor):
            tensors[name] = payload
        elif kind == INNER:
            tensors[name] = _widened(payload)
        elif old is None or held.kinds[name] != kind or not _coarse(kind, old):
            raise CodecError(f"a step changes {name}, which isn't held", slot=name)
        else:
            largest = min(float(torch.finfo(old.dtype).max), float(torch.finfo(torch.float32).max))
            if _sparse(old, bits):
                delta = densify(payload, old.numel(), MANY, largest=largest)
            else:
                delta = restored(payload, old.numel(), DENSE_BITS[bits], largest=largest)
            tensors[name] = _moved(old, delta)
        kinds[name] = kind
    for name in removed:
        if type(name) is not str or name not in tensors or name in slots:
            raise CodecError("a step removes a slot that isn't held")
        del tensors[name], kinds[name]
    return State(tensors, kinds, held.plain if plain is None else plain)


def same_weights(a: State, b: State) -> bool:
    """Whether the parameters that steps would quantise are the same, bit for bit: then nobody changed them but merges."""
    names = {n for state in (a, b) for n, t in state.tensors.items() if _coarse(state.kinds[n], t)}
    return all(n in a.tensors and n in b.tensors and same_bits(a.tensors[n], b.tensors[n]) for n in names)


def digest_of(state: State, touched: Callable[[int], None] = lambda nbytes: None) -> bytes:
    """DIGEST_BYTES that stand for every slot's name, kind, dtype, shape and bits, and the plain values. No protection against anybody."""
    import torch

    digest = blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(state.tensors):
        tensor = state.tensors[name].detach().contiguous()
        digest.update(encode((name, state.kinds[name], str(tensor.dtype), list(tensor.shape))))
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            touched(tensor.nbytes)
    digest.update(encode(state.plain))
    return digest.digest()


def _sparse(tensor: torch.Tensor, bits: int) -> bool:
    return bits == 1 and tensor.numel() > CHUNK


def _coarse(kind: str, tensor: torch.Tensor) -> bool:
    """Whether the slot's differences are quantised."""
    return kind == PARAM and tensor.dtype.is_floating_point and tensor.numel() > BLOCK


def _widened(payload: Any) -> torch.Tensor:
    import torch

    if type(payload) is not tuple or len(payload) != 2 or type(payload[1]) is not str or payload[1] not in ROUNDED:
        raise CodecError("not rounded optimizer state")
    if not isinstance(payload[0], torch.Tensor) or payload[0].dtype != torch.bfloat16:
        raise CodecError("not a value in bfloat16")
    return payload[0].to(getattr(torch, payload[1]))


def _moved(old: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return (old.to(_wide(old)) + delta.reshape(old.shape)).to(old.dtype)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
