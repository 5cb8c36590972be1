"""Versions by steps: both ends hold the same, errors don't add up, and what doesn't fit is refused or found out."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError
from depin_nb.core.state import State
from depin_nb.training.compress import same_bits
from depin_nb.training.downlink import apply_step, digest_of, encode_step, same_weights

MAX = 1 << 24
torch.set_num_threads(1)


def version(at: int) -> State:
    """A run's version: parameters wander, buffers and counters with them."""
    g = torch.Generator().manual_seed(1)
    tensors = {
        "model/w": torch.randn(40, 33, generator=g),
        "model/half": torch.randn(600, generator=g).to(torch.bfloat16),
        "model/wide": torch.randn(300, generator=g, dtype=torch.float64),
        "model/b": torch.randn(7, generator=g),
        "model/mean": torch.randn(5, generator=g),
        "model/n": torch.tensor(3 + at),
        "model/mask": torch.full((600,), float("-inf")),
    }
    for _ in range(at):
        for name in ("model/w", "model/half", "model/wide", "model/b", "model/mean"):
            t = tensors[name]
            tensors[name] = (t.double() + 0.01 * torch.randn(t.shape, generator=g, dtype=torch.float64)).to(t.dtype)
    kinds = dict.fromkeys(tensors, "param") | {"model/mean": "buffer", "model/n": "counter"}
    return State(tensors, kinds, {"lr": 0.1 * at})


def same(a: State, b: State) -> bool:
    return set(a.tensors) == set(b.tensors) and all(same_bits(a.tensors[n], b.tensors[n]) for n in a.tensors)


def alike(a: State, b: State) -> bool:
    return same(a, b) and digest_of(a) == digest_of(b)


@pytest.mark.parametrize("bits", [4, 8])
def test_both_ends_hold_the_same_and_errors_do_not_add_up(bits: int) -> None:
    hub = worker = version(0)
    lost = []
    for at in range(1, 30):
        data, hub = encode_step(hub, version(at), bits=bits)
        worker = apply_step(worker, data, max_bytes=MAX)
        assert alike(hub, worker)
        assert (worker.kinds, worker.plain) == (version(at).kinds, version(at).plain)
        for name in ("model/b", "model/mean", "model/n", "model/mask"):
            assert same_bits(worker.tensors[name], version(at).tensors[name])
        lost.append(float((worker.tensors["model/w"] - version(at).tensors["model/w"]).abs().max()))
    assert max(lost[-5:]) <= 2 * lost[0]
    assert max(lost) < 0.01


def test_steps_of_one_bit_are_smaller_and_their_errors_do_not_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    hub = worker = newest = State({"w": torch.randn(10_000, generator=generator)}, {"w": "param"}, {})
    moved, off, sizes = 0.01, [], []
    for _ in range(40):
        newest = State({"w": newest.tensors["w"] + moved * torch.randn(10_000, generator=generator)}, {"w": "param"}, {})
        data, hub = encode_step(hub, newest, bits=1)
        worker = apply_step(worker, data, max_bytes=MAX)
        assert alike(hub, worker)
        sizes.append(len(data))
        off.append(float((worker.tensors["w"] - newest.tensors["w"]).square().mean().sqrt()))
    assert max(sizes) < 10_000 * 1.6 / 8
    assert max(off[20:]) < 1.2 * max(off[:20]) < 2 * moved
    with pytest.raises(CodecError):
        apply_step(newest, encode({**decode(data), "bits": 4}), max_bytes=MAX)


def test_a_step_is_small_and_nothing_costs_nothing() -> None:
    first = State({"w": torch.randn(100_000)}, {"w": "param"}, {})
    second = State({"w": first.tensors["w"] + 0.01 * torch.randn(100_000)}, {"w": "param"}, {})
    assert len(encode_step(first, second, bits=4)[0]) < 400_000 / 7.7
    assert len(encode_step(first, first, bits=4)[0]) < 100
    rare = first.tensors["w"].clone()
    rare[torch.randperm(100_000)[:2000]] += 0.01
    assert len(encode_step(first, State({"w": rare}, {"w": "param"}, {}), bits=4)[0]) < 100_000 * 0.06


def test_slots_appear_change_and_go() -> None:
    old, new = version(1), version(2)
    new.tensors["optimizer/0/exp_avg"], new.kinds["optimizer/0/exp_avg"] = torch.ones(40, 33), "inner"  # exact in bfloat16
    new.tensors["model/w"] = torch.ones(3, 2)
    new.tensors["model/half"] = new.tensors["model/half"].float()
    new.kinds["model/wide"] = "buffer"
    del new.tensors["model/b"], new.kinds["model/b"]
    data, after = encode_step(old, new, bits=4)
    assert alike(apply_step(old, data, max_bytes=MAX), after)
    assert alike(after, new)
    assert after.kinds == new.kinds


def test_optimizer_state_is_rounded_once_and_then_costs_nothing() -> None:
    old, new = version(0), version(0)
    new.tensors["optimizer/0/exp_avg_sq"], new.kinds["optimizer/0/exp_avg_sq"] = torch.rand(400), "inner"
    data, after = encode_step(old, new, bits=4)
    assert alike(apply_step(old, data, max_bytes=MAX), after)
    assert torch.allclose(after.tensors["optimizer/0/exp_avg_sq"], new.tensors["optimizer/0/exp_avg_sq"], rtol=0.004)
    assert len(data) < 1400
    again, still = encode_step(after, new, bits=4)
    assert len(again) < 100
    assert alike(still, after)
    message = decode(data)
    for payload in (torch.rand(400, dtype=torch.float64), 1.0), (torch.rand(4).bfloat16(), "int8"), (torch.rand(4).bfloat16(),), 7:
        slots = {**message["slots"], "optimizer/0/exp_avg_sq": ("inner", payload)}
        with pytest.raises(CodecError):
            apply_step(old, encode({**message, "slots": slots}), max_bytes=MAX)


def test_the_same_weights() -> None:
    a, b = version(3), version(3)
    b.tensors["model/mean"] += 1
    b.tensors["model/b"] += 1
    assert same_weights(a, b)
    b.tensors["model/w"][0, 0] += 1
    assert not same_weights(a, b)
    del b.tensors["model/w"]
    assert not same_weights(a, b)
    assert not same_weights(b, a)


def test_a_version_with_nan_travels_whole() -> None:
    old, new = version(0), version(1)
    new.tensors["model/w"][3, 3] = float("nan")
    data, after = encode_step(old, new, bits=4)
    assert same_bits(after.tensors["model/w"], new.tensors["model/w"])
    assert alike(apply_step(old, data, max_bytes=MAX), after)
    back, again = encode_step(after, version(2), bits=4)
    assert same_bits(again.tensors["model/w"], version(2).tensors["model/w"])
    assert alike(apply_step(after, back, max_bytes=MAX), again)


def test_the_digest_tells_what_a_step_was_applied_to() -> None:
    data, after = encode_step(version(0), version(1), bits=4)
    other = version(0)
    other.tensors["model/w"][0, 0] += 1e-3
    assert digest_of(apply_step(other, data, max_bytes=MAX)) != digest_of(after)
    for change in ({"plain": {"lr": 1}}, {"kinds": {**after.kinds, "model/n": "step"}}):
        assert digest_of(State(**{"tensors": after.tensors, "kinds": after.kinds, "plain": after.plain, **change})) != digest_of(after)


HOSTILE: dict[str, dict[str, Any]] = {
    "bits": {"bits": 5},
    "more": {"more": 1},
    "plain": {"plain": [1]},
    "removed twice": {"removed": ["model/b", "model/b"]},
    "removed and sent": {"removed": ["model/w"]},
    "removed unknown": {"removed": ["nowhere"]},
    "slot": {"slots": {"model/w": ["param", torch.zeros(3)]}},
    "kind": {"slots": {"model/w": ("secret", torch.zeros(3))}},
    "unknown": {"slots": {"nowhere": ("param", (torch.zeros(3, dtype=torch.uint8), torch.zeros(1)))}},
    "small": {"slots": {"model/b": ("param", (torch.zeros(4, dtype=torch.uint8), torch.zeros(1)))}},
    "kind of another": {"slots": {"model/w": ("buffer", (torch.zeros(660, dtype=torch.uint8), torch.zeros(6)))}},
    "size": {"slots": {"model/w": ("param", (torch.zeros(3, dtype=torch.uint8), torch.zeros(6)))}},
    "scales": {"slots": {"model/w": ("param", (torch.zeros(660, dtype=torch.uint8), torch.full((6,), float("nan"))))}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_made_up_step_is_refused(case: str) -> None:
    message = decode(encode_step(version(0), version(1), bits=4)[0])
    with pytest.raises(CodecError):
        apply_step(version(0), encode({**message, **HOSTILE[case]}), max_bytes=MAX)


@settings(deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes_are_refused_or_found_out(at: int, byte: int, cut: bool) -> None:
    data, after = encode_step(version(0), version(1), bits=4)
    damaged = bytearray(data)
    at %= len(damaged)
    if cut:
        damaged = damaged[:at]
    else:
        damaged[at] ^= byte or 1
    with contextlib.suppress(CodecError):
        moved = apply_step(version(0), bytes(damaged), max_bytes=MAX)
        unharmed = same(moved, after) and (moved.kinds, moved.plain) == (after.kinds, after.plain)  # a bit that nobody reads
        assert (digest_of(moved) == digest_of(after)) == unharmed
