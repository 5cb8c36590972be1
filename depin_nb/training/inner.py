"""Optimizer state in 8 bits a value, on a logarithmic scale: off by at most 4.5 %, or 9 % in a tensor with negative values.

A linear scale would round the small values of a block to zero, and Adam divides by the root of `exp_avg_sq`: a coordinate whose
moment became zero would leap. So, per block of 256, a value is a power of two below the block's largest magnitude: 8 steps an octave
where nothing is negative, else a sign and 4; 31 octaves in all. What is smaller yet becomes the smallest such value where nothing is
negative, so that what is positive stays so, else zero. Block-wise 8-bit optimizer states with finer steps near zero: Dettmers et al.,
arXiv:2110.02861.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from depin_nb.core.errors import CodecError

from .quantize import BLOCK, block_count

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float64")
SIGNED, UNSIGNED = (127, 4), (255, 8)  # largest code of a magnitude, steps an octave


def pack_inner(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
    """`(codes uint8 in the value's shape, largest magnitude of each block, signed)`; None for what is small or not finite everywhere."""
    import torch

    if value.numel() <= BLOCK or str(value.dtype).removeprefix("torch.") not in DTYPES or not bool(value.isfinite().all()):
        return None
    flat = value.detach().reshape(-1)
    signed = bool((flat < 0).any())
    levels, steps = SIGNED if signed else UNSIGNED
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    tops = blocks.abs().amax(dim=1, keepdim=True)
    below = torch.log2(blocks.abs() / tops).mul_(-steps).round_()  # 0/0 in a block of zeros is NaN
    codes = (levels - below).nan_to_num_(0.0).clamp_(0 if signed else 1, levels).where(blocks != 0, 0.0)
    if signed:
        codes += 128 * (blocks < 0)
    return codes.to(torch.uint8).view(-1)[: flat.numel()].view(value.shape), tops.view(-1), signed


def check_inner(payload: tuple[Any, ...]) -> None:
    """Raises CodecError unless it is what `pack_inner` makes: sizes fit and every scale is finite and not negative."""
    import torch

    if len(payload) != 3 or not all(isinstance(part, torch.Tensor) for part in payload[:2]):
        raise CodecError("not optimizer state in 8 bits")
    codes, tops, signed = payload
    if type(signed) is not bool or codes.dtype != torch.uint8 or tops.dtype not in (torch.float32, torch.float64) or tops.dim() != 1:
        raise CodecError("optimizer state in 8 bits is malformed")
    if tops.numel() != block_count(codes.numel()):
        raise CodecError("optimizer state in 8 bits has the wrong number of scales")
    if not bool(((tops >= 0) & tops.isfinite()).all()):
        raise CodecError("optimizer state isn't finite")


def unpack_inner(codes: torch.Tensor, tops: torch.Tensor, signed: bool) -> torch.Tensor:
    """The values of some blocks: `codes` (1-d) and the scales of the blocks that they are."""
    import torch

    levels, steps = SIGNED if signed else UNSIGNED
    table = torch.exp2((torch.arange(256, dtype=tops.dtype) % (levels + 1) - levels) / steps)
    table[0] = 0.0
    if signed:
        table[128:] *= -1
        table[128] = 0.0
    flat = table[codes.long()]
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK) * tops.unsqueeze(1)
    return flat.view(-1)[: codes.numel()]
