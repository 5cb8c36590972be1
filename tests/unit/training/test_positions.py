"""Positions as bytes: exact both ways, small, and refused when they don't fit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.errors import CodecError
from depin_nb.training.positions import decode_positions, encode_positions


@settings(deadline=None)
@given(chosen=st.sets(st.integers(0, 20_000), max_size=300), spare=st.integers(0, 50))
def test_positions_come_back(chosen: set[int], spare: int) -> None:
    positions = np.array(sorted(chosen), dtype=np.int64)
    low_bits, data = encode_positions(positions)
    end = max(chosen, default=-1) + 1 + spare
    assert data.dtype == np.uint8
    assert np.array_equal(decode_positions(data, low_bits, len(chosen), end), positions)
    if chosen:
        with pytest.raises(CodecError):
            decode_positions(data, low_bits, len(chosen), max(chosen))


def test_random_positions_take_little_more_than_they_must() -> None:
    positions = np.sort(np.random.default_rng(0).choice(1 << 20, 1 << 14, replace=False))
    least = 7.39  # log2(2^20 choose 2^14) / 2^14
    assert encode_positions(positions)[1].size * 8 / (1 << 14) < least * 1.03
    assert encode_positions(np.arange(1 << 14))[1].size == 1 << 11  # neighbours: one bit each


@settings(deadline=None)
@given(data=st.binary(max_size=60), low_bits=st.integers(-2, 30), count=st.integers(-2, 200), end=st.integers(0, 300))
def test_any_bytes_are_positions_or_refused(data: bytes, low_bits: int, count: int, end: int) -> None:
    with contextlib.suppress(CodecError):
        positions = decode_positions(np.frombuffer(data, np.uint8), low_bits, count, end)
        assert positions.size == count
        assert bool((np.diff(positions, prepend=-1) > 0).all())
        assert count == 0 or positions[-1] < end


def test_sizes_are_checked_before_anything_is_unpacked() -> None:
    with pytest.raises(CodecError, match="size"):
        decode_positions(np.zeros(1 << 20, np.uint8), 6, 64, 4096)
    with pytest.raises(CodecError, match="size"):
        decode_positions(np.zeros(3, np.uint8), 6, 64, 4096)
