"""Increasing positions as bytes: the gaps between them, Rice-coded, in whole arrays at a time.

A gap g is stored as its `low_bits` lowest bits, and g >> low_bits in unary (so many 0 bits, then a 1). All low bits come first, then all
unary ones, each part filled up to a whole byte; so both ends work without a loop. For positions drawn at random that is within
3 % of what any code needs (64 of 4,096: 7.5 bits a position where log2 of their number of choices is 7.4), and much less where they crowd.
R. F. Rice, "Some Practical Universal Noiseless Coding Techniques", JPL 79-22 (1979).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from depin_nb.core.errors import CodecError

MAX_LOW_BITS = 24

Positions = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def encode_positions(positions: Positions) -> tuple[int, Bytes]:
    """`(low_bits, bytes)` of strictly increasing positions from 0, with the `low_bits` that give the fewest bytes."""
    gaps = np.diff(positions, prepend=-1) - 1
    low_bits, size = 0, int(gaps.sum())
    while low_bits < MAX_LOW_BITS and (more := gaps.size * (low_bits + 1) + int((gaps >> (low_bits + 1)).sum())) < size:
        low_bits, size = low_bits + 1, more  # convex in low_bits: the first one that isn't better is the last to look at
    ends = np.cumsum((gaps >> low_bits) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if gaps.size else 0, dtype=np.uint8)
    unary[ends] = 1
    low = ((gaps[:, None] >> np.arange(low_bits)) & 1).astype(np.uint8)
    return low_bits, np.concatenate([np.packbits(low.reshape(-1)), np.packbits(unary)])


def decode_positions(data: Bytes, low_bits: int, count: int, end: int) -> Positions:
    """The `count` positions, strictly increasing and below `end`. Raises CodecError unless the bytes hold just that.

    Sizes are checked first: what it allocates is bounded by `end` and `count`, which the caller knows, not by what the bytes say.
    """
    if not 0 <= low_bits <= MAX_LOW_BITS or not 0 <= count <= end:
        raise CodecError("positions are malformed")
    low_bytes = (count * low_bits + 7) // 8
    unary_bytes = data.size - low_bytes
    if unary_bytes < 0 or 8 * unary_bytes > count + (end >> low_bits) + 7:
        raise CodecError("positions have the wrong size")
    ends = np.flatnonzero(np.unpackbits(data[low_bytes:]))
    if ends.size != count:
        raise CodecError("positions have the wrong number")
    high = np.diff(ends, prepend=-1) - 1
    low = np.unpackbits(data[:low_bytes], count=count * low_bits).reshape(count, low_bits)
    gaps = (high << low_bits) + low @ (1 << np.arange(low_bits, dtype=np.int64))
    positions = np.cumsum(gaps + 1) - 1
    if count and positions[-1] >= end:
        raise CodecError("positions are out of range")
    return positions
