"""Changes as bytes: exact where they promise to be, bounded where they aren't, and refused when a worker made them up."""

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
from depin_nb.training.compress import decode_change, encode_change, same_bits
from depin_nb.training.merge import Contribution, merge
from depin_nb.training.quantize import LEVELS, dequantize, quantize

MAX = 1 << 24
torch.set_num_threads(1)
SOLO = StrategyConfig(name="sync", solo=True, bits=32)


def base_state() -> State:
    g = torch.Generator().manual_seed(0)
    tensors = {
        "model/w": torch.randn(40, 33, generator=g),
        "model/half": torch.randn(600, generator=g).to(torch.bfloat16),
        "model/wide": torch.randn(300, generator=g, dtype=torch.float64),
        "model/b": torch.randn(7, generator=g),
        "model/scalar": torch.tensor(0.5),
        "model/empty": torch.zeros(0, 3),
        "model/mean": torch.randn(5, generator=g),
        "model/n": torch.tensor(3),
        "optimizer/0/exp_avg_sq": torch.rand(40, 33, generator=g),
        "optimizer/0/step": torch.tensor(4.0),
        "name/h": torch.randn(2, 3, generator=g),
        "rng/torch": torch.arange(16, dtype=torch.uint8),
    }
    kinds = dict.fromkeys(tensors, "param") | {
        "model/mean": "buffer", "model/n": "counter", "optimizer/0/exp_avg_sq": "inner",
        "optimizer/0/step": "step", "name/h": "carried", "rng/torch": "rng",
    }  # fmt: skip
    return State(tensors, kinds, {"optimizer/lr": [0.1]})


def trained(base: State, *, seed: int = 1, scale: float = 1e-3) -> State:
    """Every slot changed, as an iteration would."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, t in base.tensors.items():
        if t.dtype.is_floating_point and t.dim():
            tensors[name] = (t.double() + scale * torch.randn(t.shape, generator=g, dtype=torch.float64)).abs().to(t.dtype)
        else:
            tensors[name] = t + 1
    return State(tensors, dict(base.kinds), {"optimizer/lr": [0.05]})


def applied(base: State, data: bytes) -> State:
    return merge(base, [Contribution("w", 1, 0, decode_change(data, base, max_bytes=MAX))], SOLO)[0]


def message(bits_: int, **changes: Any) -> bytes:
    """A change as a hostile worker could write it: an honest one with entries replaced."""
    base = base_state()
    honest = decode(encode_change(base, trained(base), bits=bits_, include_inner=True)[0])
    slots = {**honest["slots"], **changes.pop("slots", {})}
    return encode({**honest, "slots": slots, **changes})


# --- quantisation -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(numel=st.integers(1, 1100), bits=st.sampled_from([4, 8]), exponent=st.integers(-42, 30), seed=st.integers(0, 9))
def test_quantisation_is_off_by_at_most_half_a_scale(numel: int, bits: int, exponent: int, seed: int) -> None:
    flat = torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    packed, scales, restored = quantize(flat, bits)
    assert packed.numel() == (-(-numel // 2) if bits == 4 else numel)
    again = dequantize(packed, scales, numel, bits, largest=3e38)
    assert torch.equal(again, restored)
    if exponent > -35:  # below, float32 itself has no precision left
        bound = scales.repeat_interleave(256)[:numel] * 0.5001
        assert bool(((flat - restored).abs() <= bound).all())
        assert bool((restored.abs() <= flat.abs().max() * 1.0001).all())
    assert bool(restored.isfinite().all())


@pytest.mark.parametrize("bits", [4, 8])
def test_representable_values_survive_quantisation(bits: int) -> None:
    levels = LEVELS[bits]
    flat = torch.arange(-levels, levels + 1, dtype=torch.float32).repeat(40)[:255] * 0.25
    flat[0] = levels * 0.25
    packed, scales, restored = quantize(flat, bits)
    assert torch.equal(restored, flat)
    assert torch.equal(dequantize(packed, scales, 255, bits, largest=1e9), flat)
    assert torch.equal(quantize(torch.zeros(300), bits)[2], torch.zeros(300))


# --- round trips ------------------------------------------------------------------------------------


def test_32_bits_are_bit_exact_for_every_kind() -> None:
    base = base_state()
    new = trained(base)
    new.tensors["model/b"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 0.0, 1.0, -1.0])
    new.tensors["model/scalar"] = torch.tensor(0.1) + torch.tensor(0.2)
    after = applied(base, encode_change(base, new, bits=32, include_inner=True)[0])
    assert set(after.tensors) == set(new.tensors)
    assert all(same_bits(after.tensors[n], new.tensors[n]) for n in new.tensors)
    assert (after.kinds, after.plain) == (new.kinds, new.plain)


def test_32_bits_carry_slots_that_appear_change_shape_or_go() -> None:
    base = base_state()
    new = trained(base)
    new.tensors["optimizer/1/exp_avg"], new.kinds["optimizer/1/exp_avg"] = torch.ones(7), "inner"
    new.tensors["name/h"] = torch.ones(1, 3, dtype=torch.float64)
    del new.tensors["rng/torch"], new.kinds["rng/torch"]
    after = applied(base, encode_change(base, new, bits=32, include_inner=True)[0])
    assert after.kinds == new.kinds
    assert all(same_bits(after.tensors[n], new.tensors[n]) for n in new.tensors)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_what_did_not_change_costs_nothing(bits: int) -> None:
    base = base_state()
    base.tensors["model/b"][0] = float("nan")
    same = State({n: t.clone() for n, t in base.tensors.items()}, dict(base.kinds), {"optimizer/lr": [0.1]})
    data, left = encode_change(base, same, bits=bits, include_inner=True)
    assert len(data) < 100
    assert left == {}
    change = decode_change(data, base, max_bytes=MAX)
    assert (change.values, change.deltas, change.plain) == ({}, {}, None)
    same.tensors["model/scalar"] = torch.tensor(0.75)
    change = decode_change(encode_change(base, same, bits=bits, include_inner=True)[0], base, max_bytes=MAX)
    assert set(change.kinds) == {"model/scalar"}


def test_zero_and_minus_zero_differ() -> None:
    base = State({"a": torch.tensor([0.0])}, {"a": "param"}, {})
    new = State({"a": torch.tensor([-0.0])}, {"a": "param"}, {})
    assert same_bits(applied(base, encode_change(base, new, bits=32, include_inner=True)[0]).tensors["a"], new.tensors["a"])


@pytest.mark.parametrize("bits", [4, 8])
def test_few_bits_are_close_and_small(bits: int) -> None:
    base = base_state()
    new = trained(base)
    data, _ = encode_change(base, new, bits=bits, include_inner=False)
    change = decode_change(data, base, max_bytes=MAX)
    assert set(change.deltas) == {"model/w", "model/half", "model/wide", "model/b", "model/scalar"}
    assert set(change.values) == {"model/mean", "model/n", "optimizer/0/step"}
    assert change.plain == {"optimizer/lr": [0.05]}
    for name in ("model/b", "model/scalar"):  # small slots aren't quantised
        assert torch.equal(change.deltas[name], new.tensors[name] - base.tensors[name])
    delta = new.tensors["model/w"] - base.tensors["model/w"]
    assert (change.deltas["model/w"] - delta).abs().max() <= delta.abs().max() / LEVELS[bits] / 2 * 1.001
    assert same_bits(change.values["model/mean"], new.tensors["model/mean"])
    big = State({"w": torch.zeros(100_000)}, {"w": "param"}, {})
    sent, _ = encode_change(big, trained(big), bits=bits, include_inner=False)
    assert len(sent) < 400_000 / {4: 7.7, 8: 3.9}[bits]


def test_inner_state_travels_as_values_and_only_when_asked_for() -> None:
    base = base_state()
    new = trained(base)
    new.tensors["optimizer/1/exp_avg_sq"], new.kinds["optimizer/1/exp_avg_sq"] = torch.rand(9, dtype=torch.float64), "inner"
    change = decode_change(encode_change(base, new, bits=4, include_inner=True)[0], base, max_bytes=MAX)
    for name, most in (("optimizer/0/exp_avg_sq", 0.045), ("optimizer/1/exp_avg_sq", 2**-8)):  # large: in 8 bits; small: bfloat16
        got, want = change.values[name], new.tensors[name]
        assert got.dtype == want.dtype
        assert bool((got >= 0).all())
        torch.testing.assert_close(got, want, rtol=most, atol=0)
    without = decode_change(encode_change(base, new, bits=4, include_inner=False)[0], base, max_bytes=MAX)
    assert not [n for n, kind in without.kinds.items() if kind == "inner"]


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_are_restored_as_the_same_zeros(bits: int) -> None:
    """What the sender takes as sent is bit for bit what is decoded, the sign of a zero included."""
    flat = torch.tensor([-1e-9, 1e-9, -1.0, 1.0] * 100)
    packed, scales, sent = quantize(flat, bits)
    assert same_bits(dequantize(packed, scales, 400, bits, largest=1e9), sent)


@pytest.mark.parametrize("bits", [4, 8])
def test_error_feedback_makes_up_for_what_was_lost(bits: int) -> None:
    base = State({"w": torch.zeros(1000)}, {"w": "param"}, {})
    step = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    new = State({"w": step}, {"w": "param"}, {})
    sums = {True: torch.zeros(1000), False: torch.zeros(1000)}
    for feedback, total in sums.items():
        left: dict[str, torch.Tensor] = {}
        for _ in range(50):
            data, left = encode_change(base, new, bits=bits, residual=left if feedback else None, include_inner=False)
            total += decode_change(data, base, max_bytes=MAX).deltas["w"]
    lost = {feedback: (total / 50 - step).abs().max() for feedback, total in sums.items()}
    assert lost[True] < lost[False] / 20


def test_inputs_stay_as_they_are() -> None:
    base, residual = base_state(), {"model/w": torch.full((40, 33), 0.01)}
    new = trained(base)
    before = base.to_bytes(), new.to_bytes(), encode(residual)
    data, left = encode_change(base, new, bits=4, residual=residual, include_inner=True)
    decode_change(data, base, max_bytes=MAX)
    assert before == (base.to_bytes(), new.to_bytes(), encode(residual))
    assert left["model/w"].shape == (40, 33)


def test_what_cannot_travel_is_refused_by_the_worker() -> None:
    base = base_state()
    for name, value in {
        "model/new": torch.ones(3),
        "model/b": torch.ones(8),
        "model/scalar": torch.tensor(1.0, dtype=torch.float64),
    }.items():
        new = trained(base)
        new.tensors[name], new.kinds[name] = value, "param"
        with pytest.raises(CodecError, match=name):
            encode_change(base, new, bits=32, include_inner=True)
    with pytest.raises(CodecError, match="16 bits"):
        encode_change(base, base, bits=16, include_inner=True)


# --- hostile bytes ----------------------------------------------------------------------------------


def q4(numel: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros((numel + 1) // 2, dtype=torch.uint8), torch.full((-(-numel // 256),), scale)


HOSTILE_SLOTS: dict[str, tuple[int, Any]] = {
    "unknown parameter": (4, {"model/other": ("param", torch.zeros(3))}),
    "unknown buffer": (32, {"model/other": ("buffer", torch.zeros(3))}),
    "unknown kind": (32, {"model/w": ("secret", torch.zeros(40, 33))}),
    "kind of another": (32, {"model/w": ("inner", torch.zeros(40, 33))}),
    "carried with few bits": (4, {"name/h": ("carried", torch.zeros(2, 3))}),
    "name isn't text": (32, {7: ("inner", torch.zeros(3))}),
    "name with control characters": (32, {"a\x1b[2J": ("inner", torch.zeros(3))}),
    "long name": (32, {"a" * 5000: ("inner", torch.zeros(3))}),
    "entry is a list": (32, {"model/w": ["param", torch.zeros(40, 33)]}),
    "kind isn't hashable": (32, {"model/w": (["param"], torch.zeros(40, 33))}),
    "value isn't a tensor": (32, {"model/w": ("param", 1.0)}),
    "array for a tensor": (32, {"model/w": ("param", torch.zeros(40, 33).numpy())}),
    "shape": (32, {"model/w": ("param", torch.zeros(33, 40))}),
    "dtype": (32, {"model/w": ("param", torch.zeros(40, 33, dtype=torch.float64))}),
    "optimizer state of another shape": (32, {"optimizer/0/exp_avg_sq": ("inner", torch.zeros(3))}),
    "raw where quantised": (4, {"model/w": ("param", torch.zeros(40, 33))}),
    "bfloat16 with 32 bits": (32, {"optimizer/0/exp_avg_sq": ("inner", (torch.zeros(40, 33, dtype=torch.bfloat16), "float32"))}),
    "bfloat16 to a dtype that it doesn't stand for": (4, {"o": ("inner", (torch.zeros(3, dtype=torch.bfloat16), "complex128"))}),
    "bfloat16 with an unhashable dtype": (4, {"o": ("inner", (torch.zeros(3, dtype=torch.bfloat16), []))}),
    "8 bits without scales": (4, {"o": ("inner", (torch.zeros(3, dtype=torch.uint8), torch.zeros(0), True))}),
    "8 bits NaN": (4, {"o": ("inner", (torch.zeros(3, dtype=torch.uint8), torch.tensor([float("nan")]), True))}),
    "8 bits for a parameter": (4, {"model/w": ("param", (torch.zeros(40, 33, dtype=torch.uint8), torch.zeros(6), True))}),
    "8 bits with 32": (32, {"optimizer/0/exp_avg_sq": ("inner", (torch.zeros(40, 33, dtype=torch.uint8), torch.zeros(6), False))}),
    "8 bits in another shape": (4, {"optimizer/0/exp_avg_sq": ("inner", (torch.zeros(1320, dtype=torch.uint8), torch.zeros(6), False))}),
    "bfloat16 step": (4, {"optimizer/0/step": ("step", (torch.tensor(1.0, dtype=torch.bfloat16), "float32"))}),
    "too few integers": (4, {"model/w": ("param", q4(1318, 1.0))}),
    "too many integers": (4, {"model/w": ("param", q4(4000, 1.0))}),
    "one scale": (4, {"model/w": ("param", (q4(1320, 1.0)[0], torch.ones(1)))}),
    "scales of another dtype": (4, {"model/w": ("param", (q4(1320, 1.0)[0], torch.ones(6, dtype=torch.float64)))}),
    "scales NaN": (4, {"model/w": ("param", q4(1320, float("nan")))}),
    "scales infinite": (4, {"model/w": ("param", q4(1320, float("inf")))}),
    "scales negative": (4, {"model/w": ("param", q4(1320, -1.0))}),
    "scales that overflow": (4, {"model/w": ("param", q4(1320, 3e38))}),
    "three parts": (4, {"model/w": ("param", (*q4(1320, 1.0), torch.ones(1)))}),
    "difference of another shape": (4, {"model/b": ("param", torch.zeros(1))}),
    "difference NaN": (4, {"model/b": ("param", torch.full((7,), float("nan")))}),
    "difference infinite": (4, {"model/b": ("param", torch.full((7,), float("-inf")))}),
    "buffer NaN": (4, {"model/mean": ("buffer", torch.full((5,), float("nan")))}),
    "step infinite": (4, {"optimizer/0/step": ("step", torch.tensor(float("inf")))}),
    "optimizer state NaN": (8, {"o": ("inner", (torch.full((3,), float("nan"), dtype=torch.bfloat16), "float32"))}),
}


@pytest.mark.parametrize("case", HOSTILE_SLOTS)
def test_a_made_up_slot_is_refused(case: str) -> None:
    bits, slots = HOSTILE_SLOTS[case]
    decode_change(message(bits), base_state(), max_bytes=MAX)  # the honest one passes
    with pytest.raises(CodecError):
        decode_change(message(bits, slots=slots), base_state(), max_bytes=MAX)


@pytest.mark.parametrize(
    "changes",
    [{"bits": 5}, {"bits": True}, {"bits": "4"}, {"bits": [4]}, {"plain": [1]}, {"plain": {1: 2}}, {"removed": "rng/torch"},
     {"removed": ["model/w"]},     {"removed": [["a"]]}, {"removed": ["nowhere"]}, {"removed": ["rng/torch"]}, {"more": 1}],
)  # fmt: skip
def test_a_made_up_message_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        decode_change(message(32, **changes), base_state(), max_bytes=MAX)


def test_only_a_solo_run_removes_and_only_once() -> None:
    base = base_state()
    empty = {"slots": {}, "plain": None}
    assert decode_change(encode({"bits": 32, "removed": ["rng/torch"], **empty}), base, max_bytes=MAX).removed == ("rng/torch",)
    for bits, removed in ((4, ["rng/torch"]), (32, ["rng/torch"] * 2)):
        with pytest.raises(CodecError):
            decode_change(encode({"bits": bits, "removed": removed, **empty}), base, max_bytes=MAX)


def test_sizes_are_bounded() -> None:
    base = base_state()
    data = message(32)
    with pytest.raises(CodecError, match="at most"):
        decode_change(data, base, max_bytes=len(data) - 1)
    # bfloat16 grows on arrival: what it becomes counts, not only what was sent
    grown = message(4, slots={"o": ("inner", (torch.zeros(5000, dtype=torch.bfloat16), "float64"))})
    with pytest.raises(CodecError, match="new slots"):
        decode_change(grown, base, max_bytes=30_000)
    assert decode_change(grown, base, max_bytes=40_000).values["o"].dtype == torch.float64


def test_a_diverged_change_is_refused_and_poisons_no_residual() -> None:
    base = State({"w": torch.zeros(600), "mask": torch.tensor([0.0, float("-inf")])}, {"w": "param", "mask": "buffer"}, {})
    new = State({"w": torch.ones(600), "mask": torch.tensor([1.0, float("-inf")])}, dict(base.kinds), {})
    decode_change(encode_change(base, new, bits=4, include_inner=False)[0], base, max_bytes=MAX)  # -inf was there before
    for bad in (float("nan"), float("inf")):
        new.tensors["w"][300] = bad
        data, left = encode_change(base, new, bits=4, include_inner=False)
        assert bool(left["w"].isfinite().all())
        with pytest.raises(CodecError, match="finite"):
            decode_change(data, base, max_bytes=MAX)


@settings(deadline=None, max_examples=150)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes_raise_nothing_but_codec_errors(at: int, byte: int, cut: bool) -> None:
    data = bytearray(message(4))
    at %= min(len(data), 1500)  # the header and the first buffers
    if cut:
        data = data[:at]
    else:
        data[at] = byte
    with contextlib.suppress(CodecError):
        decode_change(bytes(data), base_state(), max_bytes=MAX)
