"""Quantised values of which most are zero, without their zeros: rows of an embedding that no batch read, or what sparse changes sum to.

Lossless: the packed bytes of `quantize.py` (a byte holds one value of 8 bits or two of 4), as the positions and values of those that stand
for something else than zero. The sender chooses by size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from depin_nb.core.errors import CodecError

from .positions import decode_positions, encode_positions
from .quantize import BLOCK, add_blocks, check_blocks, check_scales, of_pairs, packed_bytes

if TYPE_CHECKING:
    import torch

ZERO = {4: 0x88, 8: 0x00}  # the byte of two zeros of 4 bits, of one of 8
MOST_KEPT = 0.7  # of the bytes: with more, positions cost what zeros would


def thinned(packed: torch.Tensor, scales: torch.Tensor, bits: int) -> tuple[Any, ...]:
    """`(packed, scales)` as it stands, or the smaller `(kept, scales, low_bits, positions)`."""
    import torch

    at = (packed != ZERO[bits]).nonzero().reshape(-1)
    if at.numel() > MOST_KEPT * packed.numel():
        return packed, scales
    low_bits, positions = encode_positions(at.numpy())
    if at.numel() + positions.size >= packed.numel():
        return packed, scales
    return packed[at], scales, low_bits, torch.from_numpy(positions)


def check(payload: Any, numel: int, bits: int, *, largest: float) -> None:
    """Raises CodecError unless `payload` is either form of `numel` values, each finite and at most `largest`."""
    import torch

    if type(payload) is not tuple or len(payload) not in (2, 4) or not all(isinstance(payload[i], torch.Tensor) for i in (0, 1, -1)):
        raise CodecError("not a quantised change")
    if len(payload) == 2:
        check_blocks(*payload, numel, bits, largest=largest)
        return
    kept, scales, low_bits, positions = payload
    if type(low_bits) is not int or any(part.dtype != torch.uint8 or part.dim() != 1 for part in (kept, positions)):
        raise CodecError("a quantised change's positions are malformed")
    decode_positions(positions.numpy(), low_bits, kept.numel(), packed_bytes(numel, bits))
    check_scales(scales, numel, bits, largest=largest)


def add(total: torch.Tensor, payload: tuple[Any, ...], bits: int, weight: float) -> None:
    """Adds `weight` times what the checked payload stands for to `total` (1-d float32); without zeros, only where there are values."""
    import torch

    if len(payload) == 2:
        add_blocks(total, *payload, bits, weight)
        return
    kept, scales, low_bits, positions = payload
    numel = total.numel()
    at = torch.from_numpy(decode_positions(positions.numpy(), low_bits, kept.numel(), packed_bytes(numel, bits)))
    in_byte = 8 // bits
    if numel % in_byte:  # the last byte holds one value more than there are
        packed = torch.full((packed_bytes(numel, bits),), ZERO[bits], dtype=torch.uint8)
        packed[at] = kept
        add_blocks(total, packed, scales, bits, weight)
        return
    integers = of_pairs(kept) if bits == 4 else kept.view(torch.int8).float()
    own = scales[at // (BLOCK // in_byte)].unsqueeze(1)
    total.view(-1, in_byte).index_add_(0, at, integers.view(-1, in_byte) * own, alpha=weight)


def restored(payload: Any, numel: int, bits: int, *, largest: float) -> torch.Tensor:
    """The 1-d float32 tensor that either form stands for. Raises CodecError unless everything fits, as `dequantize` does."""
    import torch

    check(payload, numel, bits, largest=largest)
    values = torch.zeros(numel)
    add(values, payload, bits, 1.0)
    return values
