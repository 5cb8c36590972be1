"""Block-wise symmetric quantisation of float32 vectors to 4 or 8 bits.

Each block of 256 values is stored as integers times one float32 scale (its largest magnitude over 7 or 127), so a value is off by at
most half a scale. 4-bit values are stored plus 8, two in a byte, the earlier one in the low half. Block size and the finding that
4 bits cost nothing in training: docs/training.md; the scheme is that of Dettmers et al., arXiv:2110.02861,
with a linear code instead of a dynamic one. 4 bits with the scale are 0.516 bytes a value, 1/7.75 of float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from depin_nb.core.errors import CodecError

if TYPE_CHECKING:
    import torch

BLOCK = 256
LEVELS = {4: 7, 8: 127}  # bits -> largest magnitude that an honest encoder writes
LOWEST = {4: 8, 8: 128}  # bits -> largest magnitude that the bytes can hold (on the negative side)


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
    restored = (integers * scales).view(-1)[:numel]
    if bits == 8:
        return integers.to(torch.int8).view(-1)[:numel].contiguous().view(torch.uint8), scales.view(-1), restored
    halves = integers.add_(8).to(torch.uint8).view(-1)[: numel + numel % 2]  # a block is even, so the odd one's partner is its padding
    return halves[0::2] | (halves[1::2] << 4), scales.view(-1), restored


def dequantize(packed: torch.Tensor, scales: torch.Tensor, numel: int, bits: int, *, largest: float) -> torch.Tensor:
    """The 1-d float32 tensor of `numel` values. Raises CodecError unless sizes fit and every value is finite and at most `largest`."""
    import torch

    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != packed_bytes(numel, bits):
        raise CodecError("quantised values have the wrong size")
    if scales.dtype != torch.float32 or scales.dim() != 1 or scales.numel() != block_count(numel):
        raise CodecError("quantised values have the wrong number of scales")
    if not numel:
        return torch.zeros(0)
    low, high = (float(v) for v in scales.aminmax())
    if not (low >= 0 and high * LOWEST[bits] <= largest):  # false for NaN as well
        raise CodecError("quantised values aren't finite")
    integers = torch.zeros(block_count(numel) * BLOCK, dtype=torch.int8)
    if bits == 8:
        integers[:numel] = packed.view(torch.int8)
    else:
        pairs = integers[: 2 * packed.numel()].view(-1, 2)
        pairs[:, 0] = (packed & 15).to(torch.int8)
        pairs[:, 1] = (packed >> 4).to(torch.int8)
        pairs -= 8
    return (integers.view(-1, BLOCK) * scales.unsqueeze(1)).view(-1)[:numel]
