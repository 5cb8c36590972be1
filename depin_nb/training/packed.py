"""Slots of a change as they travelled: checked, and decoded only where they are added, so that they wait for their merge in few bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depin_nb.core.errors import CodecError

from . import sparse, thin
from .inner import check_inner, unpack_inner
from .quantize import AT_ONCE, BLOCK

if TYPE_CHECKING:
    import torch

RAW, DELTA, BLOCKS, SPARSE, ROUNDED = "raw", "delta", "blocks", "sparse", "rounded"
DENSE_BITS = {1: 4, 2: 4, 4: 4, 8: 8}  # of blocks
SPARSE_KEPT = {1: sparse.MANY, 2: sparse.KEPT}  # of each chunk


@dataclass(frozen=True)
class Packed:
    """A difference (DELTA, BLOCKS, SPARSE) of `shape` in float32, not yet decoded. Make it with `checked`."""

    form: str
    payload: Any
    shape: tuple[int, ...]
    numel: int
    bits: int  # of blocks

    @classmethod
    def checked(cls, form: str, payload: Any, old: torch.Tensor, bits: int) -> Packed:
        """Of the slot whose base is `old`. Raises CodecError unless sizes fit and every value is finite and fits `old`'s dtype."""
        import torch

        numel, dense_bits = old.numel(), DENSE_BITS[bits]
        largest = min(float(torch.finfo(old.dtype).max), float(torch.finfo(torch.float32).max))
        if form == BLOCKS:
            thin.check(payload, numel, dense_bits, largest=largest)
        elif form == SPARSE:
            sparse.check(payload, numel, SPARSE_KEPT[bits], largest=largest)
        elif not isinstance(payload, torch.Tensor) or payload.dtype != torch.float32 or payload.shape != old.shape:
            raise CodecError("not a change of this slot's shape")
        elif numel and not bool((payload.abs() <= largest).all()):  # false for NaN as well
            raise CodecError("a change isn't finite")
        return cls(form, payload, tuple(old.shape), numel, dense_bits)

    def add_to(self, total: torch.Tensor, weight: float) -> None:
        """Adds `weight` times the difference to `total` (1-d, of a floating dtype), in place."""
        import torch

        if self.form == DELTA:
            total.add_(self.payload.reshape(-1), alpha=weight)
        elif total.dtype != torch.float32:
            total.add_(self.dense().reshape(-1), alpha=weight)
        elif self.form == BLOCKS:
            thin.add(total, self.payload, self.bits, weight)
        else:
            sparse.add(total, self.payload, weight)

    def dense(self) -> torch.Tensor:
        """The difference in float32."""
        import torch

        total = torch.zeros(self.numel)
        self.add_to(total, 1.0)
        return total.reshape(self.shape)


@dataclass(frozen=True)
class Rounded:
    """Optimizer state of `dtype` that travelled as bfloat16, or in 8 bits (inner.py: `tops`, `signed`). Make it with `checked`."""

    payload: torch.Tensor
    dtype: torch.dtype
    tops: torch.Tensor | None = None
    signed: bool = False

    @classmethod
    def checked(cls, payload: Any) -> Rounded:
        """Raises CodecError unless it is `(bfloat16 tensor, "float32" or "float64")` or what `pack_inner` makes."""
        import torch

        if type(payload) is not tuple:
            raise CodecError("not rounded optimizer state")
        if len(payload) == 3:
            check_inner(payload)
            codes, tops, signed = payload
            return cls(codes, tops.dtype, tops, signed)
        if len(payload) != 2 or not isinstance(payload[0], torch.Tensor) or payload[0].dtype != torch.bfloat16:
            raise CodecError("not rounded optimizer state")
        if payload[1] not in ("float32", "float64"):
            raise CodecError("not a dtype that travels rounded")
        return cls(payload[0], getattr(torch, payload[1]))

    @property
    def shape(self) -> torch.Size:
        return self.payload.shape

    @property
    def nbytes(self) -> int:
        """Once it is dense."""
        return self.payload.numel() * self.dtype.itemsize

    def piece(self, at: slice) -> torch.Tensor:
        """Some of the values, as `pieces` cuts them."""
        flat = self.payload.reshape(-1)[at]
        if self.tops is None:
            return flat.to(self.dtype)
        return unpack_inner(flat, self.tops[at.start // BLOCK : -(-at.stop // BLOCK)], self.signed)

    def dense(self) -> torch.Tensor:
        return self.piece(slice(0, self.payload.numel())).reshape(self.shape)


def pieces(numel: int) -> Iterator[slice]:
    """A slot's values, AT_ONCE at a time."""
    for start in range(0, numel, AT_ONCE):
        yield slice(start, min(start + AT_ONCE, numel))
