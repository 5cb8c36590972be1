"""The only bytes that travel between workers, hub and kernel: a msgpack header and raw buffers. Nothing is ever unpickled.

Layout: `DPN1` | u32 header length (little endian) | msgpack header {"v": value, "b": [buffer bytes, ...]} | buffers.
Values: None, bool, int, float, complex, str, bytes, list, tuple, dict, torch.Tensor (any dtype, CPU, dense), numpy.ndarray (numeric).
Decoding checks every size before it allocates, and never runs anything that the bytes name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any

import msgpack

from .errors import CodecError

if TYPE_CHECKING:
    import torch

MAGIC = b"DPN1"
MAX_HEADER_BYTES = 64 << 20
MAX_DEPTH = 32
MAX_BUFFERS = 1_000_000
_TUPLE, _TENSOR, _ARRAY, _COMPLEX, _BIGINT = 1, 2, 3, 4, 5

TORCH_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
NUMPY_KINDS = "biufc"


def encode(value: Any) -> bytes:
    """`value` as bytes. Raises CodecError for a type that the codec doesn't carry; tensors are detached and moved to the CPU."""
    buffers: list[memoryview | bytes] = []
    packed = _pack(value, buffers, 0)
    header = msgpack.packb({"v": packed, "b": [len(b) for b in buffers]}, use_bin_type=True)
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *buffers])


def can_encode(value: Any) -> bool:
    """Whether `encode(value)` would succeed, without copying tensors."""
    import numpy as np
    import torch

    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return True
    if isinstance(value, torch.Tensor):
        return value.layout is torch.strided and str(value.dtype).removeprefix("torch.") in TORCH_DTYPES
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in NUMPY_KINDS
    if type(value) in (list, tuple):
        return all(can_encode(v) for v in value)
    if type(value) is dict:
        return all(isinstance(k, (str, int, float, bool, tuple, type(None))) and can_encode(v) for k, v in value.items())
    return False


def _pack(value: Any, buffers: list[memoryview | bytes], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CodecError(f"a value nests deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind in (bool, float, str, bytes):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else msgpack.ExtType(_BIGINT, str(value).encode())
    if kind is complex:
        return msgpack.ExtType(_COMPLEX, struct.pack("<dd", value.real, value.imag))
    if kind is list:
        return [_pack(v, buffers, depth + 1) for v in value]
    if kind is tuple:
        return msgpack.ExtType(_TUPLE, msgpack.packb([_pack(v, buffers, depth + 1) for v in value], use_bin_type=True))
    if kind is dict:
        # pairs, so that keys keep their type and order
        return {"d": [[_pack(k, buffers, depth + 1), _pack(v, buffers, depth + 1)] for k, v in value.items()]}
    return _pack_array(value, buffers)


def _pack_array(value: Any, buffers: list[memoryview | bytes]) -> Any:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        if name not in TORCH_DTYPES or value.layout is not torch.strided:
            raise CodecError(f"a tensor of dtype {value.dtype} and layout {value.layout} can't travel")
        flat = value.detach().cpu().contiguous().reshape(-1)
        buffers.append(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        return msgpack.ExtType(_TENSOR, msgpack.packb([len(buffers) - 1, TORCH_DTYPES.index(name), list(value.shape)]))
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind not in NUMPY_KINDS:
            raise CodecError(f"an array of dtype {array.dtype} can't travel")
        buffers.append(array.tobytes())
        return msgpack.ExtType(_ARRAY, msgpack.packb([len(buffers) - 1, array.dtype.str, list(array.shape), isinstance(value, np.generic)]))
    if isinstance(value, (bool, int, float, str, bytes)) and type(value).__module__ != "builtins":
        raise CodecError(f"a {type(value).__name__} can't travel: convert it to a plain value")
    raise CodecError(f"a {type(value).__module__}.{type(value).__qualname__} can't travel")


def decode(data: bytes | bytearray | memoryview, *, max_bytes: int | None = None) -> Any:
    """The value in `data`. Raises CodecError when anything is not as the layout says, or when `data` is longer than `max_bytes`."""
    view = memoryview(data).cast("B")
    if max_bytes is not None and view.nbytes > max_bytes:
        raise CodecError(f"{view.nbytes} bytes where at most {max_bytes} are allowed")
    if view.nbytes < 8 or bytes(view[:4]) != MAGIC:
        raise CodecError("not in the codec's format")
    (header_bytes,) = struct.unpack("<I", view[4:8])
    if header_bytes > min(MAX_HEADER_BYTES, view.nbytes - 8):
        raise CodecError("the header is longer than the message")
    try:
        header = _unpackb(view[8 : 8 + header_bytes])
        lengths = header["b"]
        if type(header) is not dict or set(header) != {"v", "b"} or type(lengths) is not list or len(lengths) > MAX_BUFFERS:
            raise CodecError("the header is malformed")
        if not all(type(n) is int and n >= 0 for n in lengths) or sum(lengths) != view.nbytes - 8 - header_bytes:
            raise CodecError("the buffers don't add up to the message")
        buffers: list[memoryview | None] = list(_split(view[8 + header_bytes :], lengths))
        return _unpack(header["v"], buffers, 0)
    except CodecError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, struct.error, msgpack.UnpackException, OverflowError, RecursionError) as error:
        raise CodecError(f"malformed: {type(error).__name__}") from None


_SCALARS = frozenset({int, float, str, bool, bytes, type(None)})


def _unpackb(data: bytes | memoryview) -> Any:
    return msgpack.unpackb(data, raw=False, strict_map_key=False, use_list=True)


def _split(view: memoryview, lengths: Iterable[int]) -> list[memoryview]:
    parts, at = [], 0
    for n in lengths:
        parts.append(view[at : at + n])
        at += n
    return parts


def _unpack(value: Any, buffers: list[memoryview | None], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CodecError(f"a value nests deeper than {MAX_DEPTH}")
    if isinstance(value, list):  # msgpack's own, so it may change in place
        for i, part in enumerate(value):
            if type(part) not in _SCALARS:
                value[i] = _unpack(part, buffers, depth + 1)
        return value
    if isinstance(value, dict):
        if set(value) != {"d"}:
            raise CodecError("a mapping is malformed")
        return {_hashable(_unpack(k, buffers, depth + 1)): _unpack(v, buffers, depth + 1) for k, v in value["d"]}
    if not isinstance(value, msgpack.ExtType):
        return value
    if value.code == _TUPLE:
        return tuple(_unpack(v, buffers, depth + 1) for v in _unpackb(value.data))
    if value.code == _COMPLEX:
        return complex(*struct.unpack("<dd", value.data))
    if value.code == _BIGINT:
        if len(value.data) > 4096:
            raise CodecError("an integer is too long")
        return int(value.data)
    if value.code == _TENSOR:
        return _tensor(*_unpackb(value.data), buffers=buffers)
    if value.code == _ARRAY:
        return _array(*_unpackb(value.data), buffers=buffers)
    raise CodecError(f"unknown extension {value.code}")


def _hashable(key: Any) -> Any:
    if not isinstance(key, (str, int, float, bool, tuple, bytes, type(None))):
        raise CodecError("a mapping's key is not plain")
    return key


def _shape(shape: Any) -> list[int]:
    if type(shape) is not list or len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise CodecError("a shape is malformed")
    return shape


def _taken(buffers: list[memoryview | None], index: int) -> memoryview:
    """A buffer, once: a message that names one buffer many times would decode to more memory than it has bytes."""
    buffer = buffers[index] if type(index) is int and index >= 0 else None
    if buffer is None:
        raise CodecError("a buffer is named twice or not there")
    buffers[index] = None
    return buffer


def _tensor(index: int, dtype_index: int, shape: Any, *, buffers: list[memoryview | None]) -> torch.Tensor:
    import torch

    dtype = getattr(torch, TORCH_DTYPES[dtype_index])
    buffer = _taken(buffers, index)
    if prod(_shape(shape)) * dtype.itemsize != buffer.nbytes:
        raise CodecError("a tensor's shape and its bytes differ")
    if not buffer.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(buffer), dtype=torch.uint8).view(dtype).reshape(shape)


def _array(index: int, dtype_text: str, shape: Any, scalar: bool, *, buffers: list[memoryview | None]) -> Any:
    import numpy as np

    if type(dtype_text) is not str or len(dtype_text) > 4 or dtype_text.lstrip("<>=|")[:1] not in NUMPY_KINDS:
        raise CodecError("an array's dtype is malformed")
    dtype, buffer = np.dtype(dtype_text), _taken(buffers, index)
    if prod(_shape(shape)) * dtype.itemsize != buffer.nbytes:
        raise CodecError("an array's shape and its bytes differ")
    array = np.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape)
    return array[()] if scalar else array
