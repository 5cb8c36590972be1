"""A state's change as bytes: what a worker sends for a lease, and how the hub reads it without trusting it.

How a slot travels follows from its kind, dtype and size alone (`_form`), so the bytes name no form and can't choose one:
RAW new values (bit-exact); DELTA, a float32 difference; BLOCKS, a quantised difference (`quantize.py`, `thin.py`); SPARSE, the
difference's largest values (`sparse.py`); ROUNDED, values in 8 bits (`inner.py`), where they are few in bfloat16. With 32 bits
everything is RAW; with 1 and 2, large parameters are SPARSE and smaller ones as with 4. Optimizer state never travels as a quantised
difference: `exp_avg_sq` must not become negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from depin_nb.core.codec import TORCH_DTYPES, decode, encode
from depin_nb.core.errors import CodecError
from depin_nb.core.state import CARRIED, INNER, KINDS, PARAM, RNG, STEP, State

from .inner import pack_inner
from .packed import BLOCKS, DELTA, DENSE_BITS, RAW, ROUNDED, SPARSE, SPARSE_KEPT, Packed, Rounded, pieces
from .quantize import BLOCK, quantize
from .sparse import CHUNK, sparsify
from .thin import thinned

if TYPE_CHECKING:
    import torch

BITS = (1, 2, 4, 8, 32)
RESIDUAL_DECAY = 0.95  # of what SPARSE left out; it stands in for the outer momentum (SparseLoCo, arXiv:2508.15706)
APPEARING = (INNER, STEP, CARRIED, RNG)  # kinds of which a worker may make slots (an optimizer makes its state at the first step)
RESHAPING = (CARRIED, RNG)  # kinds whose shape may change (a hidden state at a short last batch)
SOLO_ONLY = (CARRIED, RNG)
MAX_NEW_SLOTS = 100_000
MAX_NAME = 1024  # characters


@dataclass
class Change:
    """What a lease did to its base: `values` are new values by slot, `deltas` differences (float32, the slot's shape).

    `rounded` and `packed` hold values and differences that aren't decoded yet (`read_change`); a slot is in one of the four.
    `kinds` holds the kind of every slot. `plain` is the whole new `State.plain`, None when it didn't change.
    `removed` names slots that the base has and the new state hasn't (solo only).
    """

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    deltas: dict[str, torch.Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    plain: dict[str, Any] | None = None
    removed: tuple[str, ...] = ()
    rounded: dict[str, Rounded] = field(default_factory=dict)
    packed: dict[str, Packed] = field(default_factory=dict)

    def decoded(self) -> Change:
        """The same with nothing left to decode."""
        values = {**self.values, **{name: value.dense() for name, value in self.rounded.items()}}
        deltas = {**self.deltas, **{name: delta.dense() for name, delta in self.packed.items()}}
        return Change(values, deltas, self.kinds, self.plain, self.removed)


def encode_change(
    base: State, new: State, *, bits: int, residual: Mapping[str, torch.Tensor] | None = None, include_inner: bool
) -> tuple[bytes, dict[str, torch.Tensor]]:
    """`(codec bytes, residual)` of the change from `base` to `new`; slots that are bitwise equal cost nothing.

    `bits` 32: raw new values of every kind. 4 or 8: parameters as differences, quantised where a slot has more than one block; 1 and
    2: as 4, but of slots of more than one chunk only the largest values. Carried tensors and generators stay with fewer than 32.
    `include_inner`: whether float optimizer state goes along.
    `residual`: what compression lost before (float32, by slot), added to this change; the one returned is what is lost now. A caller
    without error feedback passes none and drops what it gets. Raises CodecError for a slot that can't change this way.
    """
    if bits not in BITS:
        raise CodecError(f"{bits} bits aren't offered", hint="Use 1, 2, 4, 8 or 32.")
    left = dict(residual or {})
    slots: dict[str, tuple[str, Any]] = {}
    for name, value in new.tensors.items():
        kind, old = new.kinds[name], base.tensors.get(name)
        if (kind == INNER and not include_inner) or (kind in SOLO_ONLY and bits != 32):
            continue
        if old is not None and same_bits(old, value):
            continue
        if (
            base.kinds.get(name, kind) != kind
            or (old is None and kind not in APPEARING)
            or (old is not None and not _fits(old, value, kind))
        ):
            raise CodecError(f"{name} appeared, or changed its shape, dtype or kind, during the loop", slot=name)
        slots[name] = kind, _packed(name, kind, old, value, bits, left)
    removed = [n for n, k in base.kinds.items() if n not in new.tensors and k in APPEARING and (k != INNER or include_inner)]
    plain = None if encode(base.plain) == encode(new.plain) else new.plain
    return encode({"bits": bits, "slots": slots, "removed": removed if bits == 32 else [], "plain": plain}), left


def _packed(name: str, kind: str, old: torch.Tensor | None, value: torch.Tensor, bits: int, left: dict[str, torch.Tensor]) -> Any:
    import torch

    form = _form(kind, value.dtype, value.numel(), bits)
    if form == RAW:
        return value
    if form == ROUNDED:
        return pack_inner(value) or (value.to(torch.bfloat16), _dtype_name(value))
    assert old is not None  # only parameters come here, and they don't appear
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    delta = (value.detach().to(wide) - old.detach().to(wide)).to(torch.float32)
    if form == DELTA:
        return delta
    flat = delta.reshape(-1)
    if (before := left.get(name)) is not None and before.shape == value.shape:
        flat = flat + before.reshape(-1) * (RESIDUAL_DECAY if form == SPARSE else 1.0)
    payload: tuple[Any, ...]
    if form == SPARSE:
        payload, sent = sparsify(flat, SPARSE_KEPT[bits])
    else:
        packed, scales, sent = quantize(flat, DENSE_BITS[bits])
        payload = thinned(packed, scales, DENSE_BITS[bits])
    left[name] = (flat - sent).nan_to_num_(0.0, 0.0, 0.0).reshape(value.shape)
    return payload


def decode_change(data: bytes | bytearray | memoryview, base: State, *, max_bytes: int, bits: int | None = None) -> Change:
    """`read_change` with every slot decoded, in memory of its own."""
    return read_change(bytes(data), base, max_bytes=max_bytes, bits=bits).decoded()


def read_change(data: bytes | bytearray | memoryview, base: State, *, max_bytes: int, bits: int | None = None) -> Change:
    """The change in `data`, checked against `base` as hostile input and not yet decoded: its tensors lie in `data` where that is writable.

    Raises CodecError on anything that doesn't fit. `bits`: of the strategy; a change of others is refused.
    `max_bytes` bounds both the message and what slots that `base` lacks take once decoded. Differences, and all floats that came with
    fewer than 32 bits, are finite (a value may stay infinite or NaN where the base is so already); raw values of 32 bits are the user's.
    """
    message = decode(data, max_bytes=max_bytes, share=True)
    if type(message) is not dict or set(message) != {"bits", "slots", "removed", "plain"}:
        raise CodecError("not a change")
    said, slots, removed, plain = (message[key] for key in ("bits", "slots", "removed", "plain"))
    if type(said) is not int or said not in BITS or type(slots) is not dict or type(removed) is not list:
        raise CodecError("a change's parts are malformed")
    if bits is not None and said != bits:
        raise CodecError(f"a change of {said} bits where the strategy has {bits}")
    if plain is not None and not (type(plain) is dict and all(type(name) is str for name in plain)):
        raise CodecError("a change's plain values are malformed")
    change = Change(plain=plain, removed=_removed(removed, base, said, slots))
    new_slots = new_bytes = 0
    for name, entry in slots.items():
        if type(name) is not str or type(entry) is not tuple or len(entry) != 2 or entry[0] not in KINDS:
            raise CodecError("a change's slot is malformed")
        kind, payload = entry
        old = base.tensors.get(name)
        _known(name, kind, base, said)
        try:
            appeared = _read(kind, old, payload, said, change, name)
        except CodecError as error:
            raise CodecError(f"{name}: {error.message}", slot=name) from None
        if appeared:
            new_slots, new_bytes = new_slots + 1, new_bytes + appeared
            if new_slots > MAX_NEW_SLOTS or new_bytes > max_bytes:
                raise CodecError("a change has more new slots than are allowed")
        change.kinds[name] = kind
    return change


def _known(name: str, kind: str, base: State, bits: int) -> None:
    if kind in SOLO_ONLY and bits != 32:
        raise CodecError(f"a slot of kind {kind} came with {bits} bits")
    if name in base.tensors:
        if base.kinds[name] != kind:
            raise CodecError(f"{name} is of kind {base.kinds[name]}, not {kind}", slot=name)
    elif kind not in APPEARING or len(name) > MAX_NAME or not name.isprintable():
        raise CodecError(f"a slot of kind {kind} isn't known")


def _removed(removed: list[Any], base: State, bits: int, slots: dict[Any, Any]) -> tuple[str, ...]:
    for name in removed:
        if type(name) is not str or bits != 32 or base.kinds.get(name) not in APPEARING or name in slots:
            raise CodecError("a change removes a slot that it may not")
    if len(set(removed)) != len(removed):
        raise CodecError("a change removes a slot twice")
    return tuple(removed)


def _read(kind: str, old: torch.Tensor | None, payload: Any, bits: int, change: Change, name: str) -> int:
    """Puts the slot into `change`; returns how many bytes it takes that the base has no place for, at least 1 for a new slot."""
    import torch

    if old is not None and (form := _form(kind, old.dtype, old.numel(), bits)) in (DELTA, BLOCKS, SPARSE):
        change.packed[name] = Packed.checked(form, payload, old, bits)
        return 0
    value: torch.Tensor | Rounded
    if type(payload) is tuple:
        value, form = Rounded.checked(payload), ROUNDED
    elif isinstance(payload, torch.Tensor):
        value, form = payload, RAW
    else:
        raise CodecError("not a tensor")
    if _form(kind, value.dtype, value.shape.numel(), bits) != form:
        raise CodecError("not the form that this slot has")
    alike = old is not None and (old.shape, old.dtype) == (value.shape, value.dtype)
    if old is not None and not alike and kind not in RESHAPING:
        raise CodecError(f"{tuple(value.shape)} {value.dtype} where {tuple(old.shape)} {old.dtype} was")
    if bits != 32 and not _finite(value.payload if isinstance(value, Rounded) else value, old if alike else None):
        raise CodecError("values aren't finite")
    if isinstance(value, Rounded):
        change.rounded[name] = value
    else:
        change.values[name] = value
    return 0 if alike else max(1, value.nbytes)


def _form(kind: str, dtype: torch.dtype, numel: int, bits: int) -> str:
    if bits == 32 or not dtype.is_floating_point:
        return RAW
    if kind == PARAM:
        if bits in SPARSE_KEPT and numel > CHUNK:
            return SPARSE
        return BLOCKS if numel > BLOCK else DELTA
    return ROUNDED if kind == INNER and str(dtype) in ("torch.float32", "torch.float64") else RAW


def _dtype_name(tensor: torch.Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in TORCH_DTYPES:
        raise CodecError(f"a tensor of dtype {tensor.dtype} can't travel")
    return name


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _fits(old: torch.Tensor, value: torch.Tensor, kind: str) -> bool:
    return _alike(old, value) or kind in RESHAPING


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits (so NaN equals itself and 0.0 differs from -0.0)."""
    import torch

    if not _alike(a, b):
        return False
    return torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _finite(value: torch.Tensor, old: torch.Tensor | None) -> bool:
    """`old`: the base's value, where it has the same shape."""
    if not (value.dtype.is_floating_point or value.dtype.is_complex):
        return True
    value, old = value.reshape(-1), None if old is None else old.reshape(-1)
    for at in pieces(value.numel()):
        good = _isfinite(value[at])
        if old is not None:  # such as a mask of -inf, or the best loss so far before there is one
            good = good | ~_isfinite(old[at])
        if not bool(good.all()):
            return False
    return True


def _isfinite(values: torch.Tensor) -> torch.Tensor:
    return (values if values.element_size() > 1 else values.float()).isfinite()
