"""The codec carries what it says, bit for bit, and takes nothing else from hostile bytes."""

import struct
from contextlib import suppress

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.codec import MAGIC, TORCH_DTYPES, Promised, can_encode, decode, encode, encode_parts
from depin_nb.core.errors import CodecError
from depin_nb.core.state import PARAM, State

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary(max_size=20)
KEYS = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
VALUES = st.recursive(
    SCALARS | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_plain_values_come_back_as_they_were(value):
    assert decode(encode(value)) == value
    assert repr(decode(encode(value))) == repr(value)
    assert can_encode(value)


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_dtype_bit_for_bit(name):
    dtype = getattr(torch, name)
    raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8) % (2 if dtype is torch.bool else 120)
    tensor = raw.view(dtype).reshape(2, 3)
    back = decode(encode({"t": tensor, "view": tensor.T}))
    assert back["t"].dtype == dtype
    assert back["t"].shape == (2, 3)
    assert back["view"].shape == (3, 2)
    assert back["t"].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_empty_scalar_and_arrays():
    value = decode(
        encode([torch.empty(0, 3), torch.tensor(1.5), np.float32(2), np.arange(4).reshape(2, 2), torch.ones(2, requires_grad=True)])
    )
    assert value[0].shape == (0, 3)
    assert value[1].item() == 1.5
    assert type(value[2]) is np.float32
    assert value[3].tolist() == [[0, 1], [2, 3]]
    assert not value[4].requires_grad


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.nn.Linear(1, 1), torch.zeros(2).to_sparse(), np.array(["a"]), {object(): 1}])
def test_other_types_are_refused(value):
    assert not can_encode(value)
    with pytest.raises(CodecError):
        encode(value)


@given(st.binary(max_size=200))
def test_noise_raises_and_nothing_else(data):
    for noise in (data, MAGIC + data, MAGIC + struct.pack("<I", len(data)) + data):
        with pytest.raises(CodecError):
            decode(noise)


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(place, byte):
    data = bytearray(encode({"w": torch.arange(5.0), "b": [1, (2, "x")], "n": np.arange(3)}))
    data[place % len(data)] = byte
    with suppress(CodecError):
        decode(bytes(data))


def message(header, buffers=b""):
    packed = msgpack.packb(header)
    return MAGIC + struct.pack("<I", len(packed)) + packed + buffers


def tensor(index, dtype, shape):
    return msgpack.ExtType(2, msgpack.packb([index, dtype, shape]))


HOSTILE = {
    "a shape larger than its bytes": message({"v": tensor(0, 0, [2**40]), "b": [4]}, b"\0" * 4),
    "one buffer named many times": message({"v": [tensor(0, 0, [1])] * 2, "b": [4]}, b"\0" * 4),
    "a buffer that isn't there": message({"v": tensor(1, 0, [1]), "b": [4]}, b"\0" * 4),
    "a negative buffer": message({"v": tensor(-1, 0, [1]), "b": [4]}, b"\0" * 4),
    "a negative size": message({"v": None, "b": [-4, 8]}, b"\0" * 4),
    "more than there is": message({"v": None, "b": [2**50]}),
    "an unknown dtype": message({"v": tensor(0, 99, [1]), "b": [4]}, b"\0" * 4),
    "an object array": message({"v": msgpack.ExtType(3, msgpack.packb([0, "|O8", [1], False])), "b": [8]}, b"\0" * 8),
    "an unknown extension": message({"v": msgpack.ExtType(77, b""), "b": []}),
    "a list as a key": message({"v": {"d": [[[1], 2]]}, "b": []}),
    "a bare map": message({"v": {"x": 1}, "b": []}),
    "nesting without end": message({"v": __import__("functools").reduce(lambda inner, _: [inner], range(60), 1), "b": []}),
    "a header past the end": MAGIC + struct.pack("<I", 2**31) + b"x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages(name):
    with pytest.raises(CodecError):
        decode(HOSTILE[name])


def test_the_limit_is_checked_first():
    data = encode(b"x" * 1000)
    assert decode(data, max_bytes=len(data)) == b"x" * 1000
    with pytest.raises(CodecError, match="at most"):
        decode(data, max_bytes=len(data) - 1)


def test_a_state_and_what_is_not_one():
    state = State({"m/w": torch.ones(2)}, {"m/w": PARAM}, {"o/groups": [{"lr": 0.1}]})
    back = State.from_bytes(state.to_bytes())
    assert (back.kinds, back.plain, back.tensors["m/w"].tolist(), back.nbytes()) == (state.kinds, state.plain, [1.0, 1.0], 8)
    whole = {"tensors": state.tensors, "kinds": state.kinds, "plain": state.plain}
    for change in ({"kinds": {}}, {"kinds": {"m/w": "gold"}}, {"tensors": {"m/w": 1}}, {"plain": []}, {"more": 1}):
        with pytest.raises(CodecError):
            State.from_bytes(encode({**whole, **change}))


def test_pieces_are_aligned_and_shared():
    value = {"a": torch.arange(3, dtype=torch.int8), "b": torch.randn(5), "c": torch.zeros(0), "d": torch.randn(2, 2, dtype=torch.float64)}
    data = bytearray(b"".join(encode_parts(value, align=64)))
    apart, shared = decode(data), decode(data, share=True)
    start = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    for name, tensor in value.items():
        assert torch.equal(shared[name], tensor)
        if tensor.numel():
            assert (shared[name].data_ptr() - start) % 64 == 0
            assert 0 < shared[name].data_ptr() - start < len(data)
    data[-1] ^= 1
    assert not torch.equal(shared["d"], value["d"])
    assert torch.equal(apart["d"], value["d"])
    # not aligned, or not writable: memory of its own
    odd = bytearray(encode({"a": torch.ones(3, dtype=torch.int8), "b": torch.randn(5)}))
    assert torch.equal(decode(odd, share=True)["b"], decode(bytes(odd), share=True)["b"])


def test_a_promised_tensor_is_made_while_its_bytes_are_taken():
    whole, made = torch.arange(10.0), []

    def pieces():
        for at in (slice(0, 4), slice(4, 10)):
            made.append(at)
            yield whole[at]

    parts = encode_parts({"t": Promised(torch.float32, (5, 2), pieces)})
    header = next(parts)
    assert made == []
    assert header + b"".join(parts) == encode({"t": whole.reshape(5, 2)})
    assert len(made) == 2
    for wrong in (Promised(torch.float32, (5, 3), pieces), Promised(torch.float32, (3,), pieces), Promised(torch.int32, (5, 2), pieces)):
        with pytest.raises(CodecError, match="promised"):
            list(encode_parts(wrong))
