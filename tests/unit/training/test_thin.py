"""Quantised values without their zeros: nothing is lost, and made-up ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.errors import CodecError
from depin_nb.core.state import State
from depin_nb.training.compress import decode_change, encode_change
from depin_nb.training.quantize import quantize
from depin_nb.training.thin import add, restored, thinned

MAX = 1 << 24
torch.set_num_threads(1)


@settings(deadline=None)
@given(numel=st.integers(257, 3000), bits=st.sampled_from([4, 8]), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_leaving_zeros_out_loses_nothing(numel: int, bits: int, share: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    flat = torch.randn(numel, generator=g) * (torch.rand(numel, generator=g) < share)
    packed, scales, expected = quantize(flat, bits)
    payload = thinned(packed, scales, bits)
    assert torch.equal(restored(payload, numel, bits, largest=1e9), expected)
    total, again = torch.ones(numel), torch.ones(numel)
    add(total, payload, bits, 0.25)
    add(again, (packed, scales), bits, 0.25)
    torch.testing.assert_close(total, 1 + 0.25 * expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(again, total, rtol=1e-6, atol=1e-7)
    size = sum(part.numel() for i, part in enumerate(payload) if isinstance(part, torch.Tensor) and i != 1)
    assert size <= packed.numel()
    if share < 0.1:
        assert size < packed.numel() * 0.6


def test_rows_that_no_batch_read_cost_little() -> None:
    base = State({"embedding": torch.randn(1000, 64)}, {"embedding": "param"}, {})
    rows = base.tensors["embedding"].clone()
    rows[5:25] += 0.1
    data, _ = encode_change(base, State({"embedding": rows}, dict(base.kinds), {}), bits=4, include_inner=False)
    assert len(data) < 64_000 * 0.03
    change = decode_change(data, base, max_bytes=MAX)
    assert torch.allclose(change.deltas["embedding"][5:25], torch.full((20, 64), 0.1), atol=1e-3)
    assert not change.deltas["embedding"][25:].any()


@pytest.mark.parametrize(
    "payload",
    [
        (torch.zeros(3, dtype=torch.uint8), torch.ones(6), 2, torch.zeros(1, dtype=torch.uint8)),  # fewer positions than values
        (torch.zeros(1), torch.ones(6), 0, torch.tensor([128], dtype=torch.uint8)),
        (torch.zeros(1, dtype=torch.uint8), torch.ones(6), 0, torch.tensor([1.0])),
        (torch.zeros(1, dtype=torch.uint8), torch.ones(6), 0.0, torch.tensor([128], dtype=torch.uint8)),
        (torch.zeros(1, dtype=torch.uint8), torch.ones(5), 0, torch.tensor([128], dtype=torch.uint8)),
        (torch.zeros(1, dtype=torch.uint8), torch.ones(6), 0, torch.zeros(1 << 16, dtype=torch.uint8)),
        (torch.zeros(1, dtype=torch.uint8), torch.ones(6), 0),
    ],
)
def test_made_up_positions_are_refused(payload: tuple[Any, ...]) -> None:
    with pytest.raises(CodecError):
        restored(payload, 1320, 4, largest=1e9)
