"""Sparse changes: the largest values survive, what is left out comes later, and made-up ones are refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError
from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import State
from depin_nb.training.compress import decode_change, encode_change
from depin_nb.training.merge import Contribution, merge
from depin_nb.training.sparse import CHUNK, KEPT, MANY, densify, most_kept, sparsify

MAX = 1 << 24
torch.set_num_threads(1)


def noise(numel: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def two_states(shape: tuple[int, ...] = (70, 130)) -> tuple[State, State]:
    base = State({"w": noise(70 * 130).reshape(shape), "b": noise(40), "m": noise(600)}, dict.fromkeys(("w", "b", "m"), "param"), {})
    new = State({n: t + 1e-2 * noise(t.numel(), 7).reshape(t.shape) for n, t in base.tensors.items()}, dict(base.kinds), {})
    return base, new


@settings(deadline=None)
@given(numel=st.integers(1, 3 * CHUNK), exponent=st.integers(-30, 30), seed=st.integers(0, 9), zeros=st.floats(0, 1))
def test_what_arrives_is_what_the_sender_counts_as_sent(numel: int, exponent: int, seed: int, zeros: float) -> None:
    flat = noise(numel, seed) * 10.0**exponent
    flat[: int(zeros * numel)] = 0
    payload, restored = sparsify(flat)
    assert torch.equal(densify(payload, numel, largest=3e38), restored)
    kept = restored != 0
    assert int(kept.sum()) <= payload[0] <= most_kept(numel)
    assert bool((restored[kept].sign() == flat[kept].sign()).all())
    for i in range(0, numel, CHUNK):
        chunk, own = flat[i : i + CHUNK].abs(), kept[i : i + CHUNK]
        assert int(own.sum()) <= min(KEPT, -(-len(chunk) * KEPT // CHUNK))
        if own.any() and not own.all() and payload[0] == int(kept.sum()):
            assert chunk[own].min() >= chunk[~own].max()


def test_it_takes_ten_bits_a_kept_value_and_nothing_where_nothing_changed() -> None:
    numel = 100 * CHUNK
    payload, restored = sparsify(noise(numel))
    size = sum(part.numel() * part.element_size() for part in payload[2:])
    assert size * 200 < 4 * numel
    assert payload[0] == most_kept(numel) == 100 * KEPT
    kept = restored != 0
    assert float((restored - noise(numel))[kept].norm() / noise(numel)[kept].norm()) < 0.1
    rows = torch.zeros(100, CHUNK)
    rows[7, :30] = 1.0  # one row of an embedding
    payload, restored = sparsify(rows.reshape(-1))
    assert payload[0] == 30
    assert torch.equal(restored, rows.reshape(-1))


@pytest.mark.parametrize("numel", [1, 3, 4095, 4097, 9100, 40_960])
def test_with_one_bit_three_tenths_are_kept(numel: int) -> None:
    payload, restored = sparsify(noise(numel), MANY)
    assert torch.equal(densify(payload, numel, MANY, largest=1e9), restored)
    assert payload[0] == most_kept(numel, MANY)
    if numel > CHUNK:
        size = sum(part.numel() * part.element_size() for part in payload[2:])
        assert 8 * size < 1.55 * numel
        assert float((restored - noise(numel)).norm() / noise(numel).norm()) < 0.55
        with pytest.raises(CodecError, match="more than it may"):
            densify(payload, numel, largest=1e9)


def test_a_change_of_one_bit_is_one_of_one_bit() -> None:
    base, new = two_states()
    data, left = encode_change(base, new, bits=1, include_inner=False)
    change = decode_change(data, base, max_bytes=MAX)
    assert int((change.deltas["w"] != 0).sum()) == most_kept(70 * 130, MANY)
    assert torch.equal(left["w"], new.tensors["w"] - base.tensors["w"] - change.deltas["w"])
    with pytest.raises(CodecError, match="more than it may"):
        decode_change(encode({**decode(data), "bits": 2}), base, max_bytes=MAX)


def test_a_change_keeps_small_tensors_dense() -> None:
    base, new = two_states()
    data, left = encode_change(base, new, bits=2, include_inner=False)
    change = decode_change(data, base, max_bytes=MAX)
    assert int((change.deltas["w"] != 0).sum()) == most_kept(70 * 130)
    assert torch.allclose(change.deltas["b"], new.tensors["b"] - base.tensors["b"])
    assert float((change.deltas["m"] - (new.tensors["m"] - base.tensors["m"])).abs().max()) < 0.003
    assert set(left) == {"w", "m"}
    assert torch.equal(left["w"], new.tensors["w"] - base.tensors["w"] - change.deltas["w"])
    assert len(data) < 9100 * 4 / 12  # the 600 dense ones take more than the 9,100 others


def test_error_feedback_sends_in_time_what_was_too_small_at_first() -> None:
    base, new = two_states()
    step = new.tensors["w"] - base.tensors["w"]
    sums = {True: torch.zeros_like(step), False: torch.zeros_like(step)}
    for feedback, total in sums.items():
        left: dict[str, torch.Tensor] = {}
        for _ in range(200):
            data, left = encode_change(base, new, bits=2, residual=left if feedback else None, include_inner=False)
            total += decode_change(data, base, max_bytes=MAX).deltas["w"]
    assert int((sums[False] != 0).sum()) == most_kept(9100)
    assert int((sums[True] != 0).sum()) > 20 * most_kept(9100)
    large = step.abs() > step.abs().quantile(0.9)
    assert bool((sums[True][large] != 0).all())


def test_two_sparse_changes_merge() -> None:
    base, new = two_states()
    data, _ = encode_change(base, new, bits=2, include_inner=False)
    change = decode_change(data, base, max_bytes=MAX)
    config = StrategyConfig("sparse", solo=False, bits=2)
    after, _ = merge(base, [Contribution("a", 1, 0, change), Contribution("b", 1, 1, change)], config)
    assert torch.allclose(after.tensors["w"], base.tensors["w"] + change.deltas["w"])


def test_a_residual_of_another_shape_is_left_behind() -> None:
    base, new = two_states()
    plain = encode_change(base, new, bits=2, include_inner=False)[0]
    assert encode_change(base, new, bits=2, residual={"w": torch.ones(3)}, include_inner=False)[0] == plain


def made_up(**parts: Any) -> tuple[Any, ...]:
    payload, _ = sparsify(noise(9100))
    names = ("count", "low_bits", "positions", "values", "magnitudes")
    return tuple(parts.get(name, part) for name, part in zip(names, payload, strict=True))


HOSTILE: dict[str, Any] = {
    "not a tuple": list(made_up()),
    "a part short": made_up()[:4],
    "raw": torch.zeros(70, 130),
    "more than may be kept": made_up(count=most_kept(9100) + 1, values=torch.zeros(36, dtype=torch.uint8)),
    "negative count": made_up(count=-1),
    "count is a bool": made_up(count=True),
    "too many low bits": made_up(low_bits=60),
    "positions too long": made_up(positions=torch.zeros(1 << 16, dtype=torch.uint8)),
    "positions too short": made_up(positions=torch.zeros(4, dtype=torch.uint8)),
    "positions out of range": made_up(count=1, low_bits=13, positions=torch.tensor([255, 255, 64], dtype=torch.uint8),
                                      values=torch.zeros(1, dtype=torch.uint8)),
    "positions of another dtype": made_up(positions=torch.zeros(64)),
    "positions in rows": made_up(positions=torch.zeros(8, 8, dtype=torch.uint8)),
    "values too short": made_up(values=torch.zeros(3, dtype=torch.uint8)),
    "magnitudes of another dtype": made_up(magnitudes=torch.ones(3, 2)),
    "too few magnitudes": made_up(magnitudes=torch.ones(2, 2, dtype=torch.bfloat16)),
    "magnitudes NaN": made_up(magnitudes=torch.full((3, 2), float("nan"), dtype=torch.bfloat16)),
    "magnitudes infinite": made_up(magnitudes=torch.full((3, 2), float("inf"), dtype=torch.bfloat16)),
    "magnitudes negative": made_up(magnitudes=torch.full((3, 2), -1.0, dtype=torch.bfloat16)),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_made_up_sparse_change_is_refused(case: str) -> None:
    base, new = two_states()
    honest = decode(encode_change(base, new, bits=2, include_inner=False)[0])
    assert densify(made_up(), 9100, largest=1e9).numel() == 9100
    honest["slots"]["w"] = ("param", HOSTILE[case])
    with pytest.raises(CodecError):
        decode_change(encode(honest), base, max_bytes=MAX)


@settings(deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes_raise_nothing_but_codec_errors(at: int, byte: int, cut: bool) -> None:
    base, new = two_states()
    data = bytearray(encode_change(base, new, bits=2, include_inner=False)[0])
    at %= len(data)
    if cut:
        data = data[:at]
    else:
        data[at] = byte
    with contextlib.suppress(CodecError):
        change = decode_change(bytes(data), base, max_bytes=MAX)
        assert all(bool(d.isfinite().all()) for d in change.deltas.values())


def test_a_diverged_change_is_refused_and_poisons_no_residual() -> None:
    base, new = two_states()
    for bad in (float("nan"), float("inf")):
        new.tensors["w"][3, 3] = bad
        data, left = encode_change(base, new, bits=2, include_inner=False)
        assert bool(left["w"].isfinite().all())
        with pytest.raises(CodecError, match="finite"):
            decode_change(data, base, max_bytes=MAX)
