"""The largest values of a float32 vector, 2 bits each: what strategy `sparse` and changes of 1 bit send of a large parameter.

Of each chunk of 4,096 values the 64 of largest magnitude are kept, with 1 bit the 1,228 (fewer of a shorter last chunk, in proportion),
zeros among them left out. A kept value is its sign and one of two magnitudes of its chunk (bfloat16, a one-dimensional 2-means of its
kept magnitudes); where it belongs is coded in `positions.py`. 64 take about 10 bits each: 0.02 bytes a parameter, 1/205 of float32;
1,228 take 5 each: 1.5 bits a parameter, 1/21.
Chunk, share and 2 bits with error feedback are SparseLoCo's (arXiv:2508.15706; its source codes positions at 12 bits or by Rice).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from depin_nb.core.errors import CodecError

from .positions import decode_positions, encode_positions

if TYPE_CHECKING:
    import torch

CHUNK = 4096
KEPT = 64
MANY = 1228  # three tenths: of 0.05 to 0.4, with merges as often as the bytes allow, what came closest (bench/bytes_loss.py)
_ROUNDS = 3  # of 2-means: later ones move a magnitude by less than bfloat16 rounds it


def most_kept(numel: int, kept: int = KEPT) -> int:
    """How many values of `numel` are kept at most, where `kept` of a chunk are."""
    return numel // CHUNK * kept + -(-(numel % CHUNK) * kept // CHUNK)


def sparsify(flat: torch.Tensor, most: int = KEPT) -> tuple[tuple[int, int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """`((count, low_bits, positions uint8, values uint8, magnitudes bfloat16 (chunks, 2)), restored)` of the 1-d float32 tensor `flat`.

    `most`: how many values of a chunk are kept. `restored` is bit for bit what `densify` returns. Where a value isn't finite, neither is
    a magnitude, which a decoder refuses.
    """
    import torch

    numel = flat.numel()
    rows = torch.nn.functional.pad(flat, (0, -numel % CHUNK)).view(-1, CHUNK)
    sizes, columns = rows.abs().topk(most, dim=1)  # largest first, NaN before everything
    kept = sizes != 0
    if tail := numel % CHUNK:
        kept[-1, most_kept(tail, most) :] = False
    magnitudes = _two_means(sizes, kept)
    wide = magnitudes.float()
    marks = kept.to(torch.uint8) * (1 + (sizes > wide.mean(dim=1, keepdim=True)).to(torch.uint8))  # 2 where it is a large one
    placed = torch.zeros(rows.shape, dtype=torch.uint8).scatter_(1, columns, marks).view(-1)
    at = placed.nonzero().view(-1)
    large = placed[at] == 2
    negative = flat[at] < 0
    restored = torch.zeros_like(flat)
    restored[at] = _levels(at, large, negative, wide)
    low_bits, positions = encode_positions(at.numpy())
    values = torch.from_numpy(np.packbits(torch.cat([negative, large]).numpy()))
    return (at.numel(), low_bits, torch.from_numpy(positions), values, magnitudes), restored


def check(payload: Any, numel: int, most: int = KEPT, *, largest: float) -> None:
    """Raises CodecError unless the payload is `sparsify`'s of `numel` values, sizes fit, positions increase within `numel`, and every value
    is finite and at most `largest`."""
    import torch

    if type(payload) is not tuple or len(payload) != 5 or not all(isinstance(part, torch.Tensor) for part in payload[2:]):
        raise CodecError("not a sparse change")
    count, low_bits, positions, values, magnitudes = payload
    if type(count) is not int or type(low_bits) is not int or not 0 <= count <= most_kept(numel, most):
        raise CodecError("a sparse change keeps more than it may")
    if positions.dtype != torch.uint8 or positions.dim() != 1:
        raise CodecError("a sparse change's positions are malformed")
    if values.dtype != torch.uint8 or values.dim() != 1 or values.numel() != (2 * count + 7) // 8:
        raise CodecError("a sparse change's values have the wrong size")
    if magnitudes.dtype != torch.bfloat16 or magnitudes.shape != (-(-numel // CHUNK), 2):
        raise CodecError("a sparse change's magnitudes have the wrong size")
    wide = magnitudes.float()
    if numel and not bool(((wide >= 0) & (wide <= largest)).all()):  # false for NaN as well
        raise CodecError("a sparse change isn't finite")
    decode_positions(positions.numpy(), low_bits, count, numel)


def add(total: torch.Tensor, payload: tuple[Any, ...], weight: float) -> None:
    """Adds `weight` times the values that the checked payload keeps to `total` (1-d float32)."""
    import torch

    count, low_bits, positions, values, magnitudes = payload
    at = torch.from_numpy(decode_positions(positions.numpy(), low_bits, count, total.numel()))
    bits = torch.from_numpy(np.unpackbits(values.numpy(), count=2 * count).view(np.bool_))
    total.index_add_(0, at, _levels(at, bits[count:], bits[:count], magnitudes.float()), alpha=weight)


def densify(payload: Any, numel: int, most: int = KEPT, *, largest: float) -> torch.Tensor:
    """The 1-d float32 tensor of `numel` values, zero where none was kept. Raises CodecError as `check` does."""
    import torch

    check(payload, numel, most, largest=largest)
    dense = torch.zeros(numel)
    add(dense, payload, 1.0)
    return dense


def _two_means(sizes: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The two magnitudes (bfloat16, smaller first) that stand for each row's kept sizes."""
    import torch

    masked = sizes.where(kept, 0.0)
    count = kept.sum(dim=1, keepdim=True).clamp_min(1)
    small = large = middle = masked.sum(dim=1, keepdim=True) / count
    for _ in range(_ROUNDS):
        upper = masked > middle
        above = upper.sum(dim=1, keepdim=True)
        large = (masked * upper).sum(dim=1, keepdim=True) / above.clamp_min(1)
        small = (masked * ~upper).sum(dim=1, keepdim=True) / (count - above).clamp_min(1)
        large = large.where(above > 0, small)
        middle = (small + large) / 2
    return torch.cat([small, large], dim=1).to(torch.bfloat16)


def _levels(at: torch.Tensor, large: torch.Tensor, negative: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    levels = magnitudes[at // CHUNK, large.long()]
    return levels.where(~negative, -levels)
