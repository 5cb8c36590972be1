"""Block-wise symmetric quantisation of float32 vectors to 4 or 8 bits.

Each block of 256 values is stored as integers times one float32 scale (its largest magnitude over 7 or 127), so a value is off by at
most half a scale. 4-bit values are stored plus 8, two in a byte, the earlier one in the low half. Block size and the finding that
4 bits cost nothing in training: docs/training.md; the scheme is that of Dettmers et al., arXiv:2110.02861,
with a linear code instead of a dynamic one. 4 bits with the scale are 0.516 bytes a value, 1/7.75 of float32.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from depin_nb.core.errors import CodecError

if TYPE_CHECKING:
    import torch

BLOCK = 256
LEVELS = {4: 7, 8: 127}  # bits -> largest magnitude that an honest encoder writes
LOWEST = {4: 8, 8: 128}  # bits -> largest magnitude that the bytes can hold (on the negative side)
AT_ONCE = 1 << 18  # values that are decoded at once: what a large slot takes beside its sum


def packed_bytes(numel: int, bits: int) -> int:
    """How many bytes the integers of `numel` values take."""
    return (numel + 1) // 2 if bits == 4 else numel


def block_count(numel: int) -> int:
    return -(-numel // BLOCK)


def quantize(flat: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(packed uint8, scales float32, restored float32)` of the 1-d float32 tensor `flat`.

    `restored` is bit for bit what `dequantize` returns. Blocks with a value that isn't finite get a scale that isn't finite, which
    a decoder refuses.
    """
    import torch

    numel, levels = flat.numel(), LEVELS[bits]
    blocks = torch.nn.functional.pad(flat, (0, -numel % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True).div_(levels)
    # below the smallest normal number a scale has lost its precision: the block then becomes zeros or rounds coarsely
    divisor = scales.clamp_min(torch.finfo(torch.float32).tiny)
    integers = (blocks / divisor).nan_to_num_(0.0).round_().clamp_(-levels, levels)
    restored = (integers * scales).add_(0.0).view(-1)[:numel]  # what is rounded to -0.0 is decoded as 0.0
    if bits == 8:
        return integers.to(torch.int8).view(-1)[:numel].contiguous().view(torch.uint8), scales.view(-1), restored
    halves = integers.add_(8).to(torch.uint8).view(-1)[: numel + numel % 2]  # a block is even, so the odd one's partner is its padding
    return halves[0::2] | (halves[1::2] << 4), scales.view(-1), restored


def check_blocks(packed: torch.Tensor, scales: torch.Tensor, numel: int, bits: int, *, largest: float) -> None:
    """Raises CodecError unless sizes fit and every value is finite and at most `largest`. Decodes nothing."""
    import torch

    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != packed_bytes(numel, bits):
        raise CodecError("quantised values have the wrong size")
    check_scales(scales, numel, bits, largest=largest)


def check_scales(scales: torch.Tensor, numel: int, bits: int, *, largest: float) -> None:
    """As `check_blocks`, of the scales alone."""
    import torch

    if scales.dtype != torch.float32 or scales.dim() != 1 or scales.numel() != block_count(numel):
        raise CodecError("quantised values have the wrong number of scales")
    if not numel:
        return
    low, high = (float(v) for v in scales.aminmax())
    if not (low >= 0 and high * LOWEST[bits] <= largest):  # false for NaN as well
        raise CodecError("quantised values aren't finite")


def add_blocks(total: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, bits: int, weight: float) -> None:
    """Adds `weight` times the values to `total` (1-d float32, as many values), AT_ONCE at a time. They are checked before."""
    numel = total.numel()
    for start in range(0, numel, AT_ONCE):
        end = min(start + AT_ONCE, numel)
        even = (end - start) // BLOCK * BLOCK
        integers = _integers(packed, start, end, bits)
        if even:
            own = scales[start // BLOCK : (start + even) // BLOCK].unsqueeze(1)
            total[start : start + even].view(-1, BLOCK).addcmul_(integers[:even].view(-1, BLOCK), own, value=weight)
        if start + even < end:
            total[start + even : end].addcmul_(integers[even : end - start], scales[-1:], value=weight)


def dequantize(packed: torch.Tensor, scales: torch.Tensor, numel: int, bits: int, *, largest: float) -> torch.Tensor:
    """The 1-d float32 tensor of `numel` values. Raises CodecError unless sizes fit and every value is finite and at most `largest`."""
    import torch

    check_blocks(packed, scales, numel, bits, largest=largest)
    values = torch.zeros(numel)
    add_blocks(values, packed, scales, bits, 1.0)
    return values


def _integers(packed: torch.Tensor, start: int, end: int, bits: int) -> torch.Tensor:
    """The integers from `start` (even) to `end` as float32; of 4 bits one more where `end` is odd."""
    import torch

    if bits == 8:
        return packed[start:end].view(torch.int8).float()
    return of_pairs(packed[start // 2 : (end + 1) // 2])


def of_pairs(packed: torch.Tensor) -> torch.Tensor:
    """Both integers of each byte (4 bits), as float32."""
    import torch

    return torch.index_select(_pairs(), 0, packed.int()).view(torch.float32)


@cache
def _pairs() -> torch.Tensor:
    """The two float32 of each of the 256 bytes, as one int64: a look-up of 8 bytes takes half the time of one of two floats."""
    import torch

    byte = torch.arange(256)
    return torch.stack([byte % 16 - 8, byte // 16 - 8], 1).float().view(torch.int64).reshape(-1)
