"""The only bytes that travel between workers, hub and kernel: a msgpack header and raw buffers. Nothing is ever unpickled.

Layout: `DPN1` | u32 header length (little endian) | msgpack header {"v": value, "b": [buffer bytes, ...]} | buffers.
Values: None, bool, int, float, complex, str, bytes, list, tuple, dict, torch.Tensor (any dtype, CPU, dense), numpy.ndarray (numeric).
Decoding checks every size before it allocates, and never runs anything that the bytes name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
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


@dataclass(frozen=True)
class Promised:
    """A tensor that is made, piece by piece and in order, while its bytes are taken from `encode_parts`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def encode(value: Any) -> bytes:
    """`value` as bytes. Raises CodecError for a type that the codec doesn't carry; tensors are detached and moved to the CPU."""
    return b"".join(encode_parts(value))


def encode_parts(value: Any, *, align: int = 1) -> Iterator[bytes | memoryview]:
    """The bytes of `encode` in pieces, tensors without a copy; `value` may hold `Promised` ones.

    `align`: each buffer begins at a multiple of so many bytes (at most 128), so that `decode(.., share=True)` needs no copies.
    """
    buffers = _Buffers(align > 1)
    packed = _pack(value, buffers, 0)
    lengths = [b.nbytes if isinstance(b, Promised) else len(b) for b in buffers.parts]
    header = msgpack.packb({"v": packed, "b": lengths}, use_bin_type=True)
    if align > 1:
        at = 8 + len(header)
        for i in range(0, len(lengths), 2):
            lengths[i] = -at % align
            at += lengths[i] + lengths[i + 1]
            buffers.parts[i] = bytes(lengths[i])
        header = msgpack.packb({"v": packed, "b": lengths}, use_bin_type=True)
    yield b"".join([MAGIC, struct.pack("<I", len(header)), header])
    for part in buffers.parts:
        if isinstance(part, Promised):
            yield from _kept(part)
        elif part:
            yield part


class _Buffers:
    """What follows the header. `fillers`: before each one a buffer that nothing names (up to 127 bytes: its length is one byte)."""

    def __init__(self, fillers: bool) -> None:
        self.parts: list[Any] = []
        self._fillers = fillers

    def add(self, part: Any) -> int:
        """Its index."""
        self.parts += [b"", part] if self._fillers else [part]
        return len(self.parts) - 1


def _kept(promised: Promised) -> Iterator[memoryview]:
    left = promised.nbytes
    for piece in promised.make():
        part = _bytes_of(piece)
        left -= len(part)
        if piece.dtype != promised.dtype or left < 0:
            break
        if part:
            yield part
    if left:
        raise CodecError("a tensor isn't what was promised")


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


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


def _pack(value: Any, buffers: _Buffers, depth: int) -> Any:
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


def _pack_array(value: Any, buffers: _Buffers) -> Any:
    import numpy as np
    import torch

    if isinstance(value, (torch.Tensor, Promised)):
        name = str(value.dtype).removeprefix("torch.")
        if name not in TORCH_DTYPES or (isinstance(value, torch.Tensor) and value.layout is not torch.strided):
            layout = getattr(value, "layout", "strided")
            raise CodecError(f"a tensor of dtype {value.dtype} and layout {layout} can't travel")
        index = buffers.add(value if isinstance(value, Promised) else _bytes_of(value))
        return msgpack.ExtType(_TENSOR, msgpack.packb([index, TORCH_DTYPES.index(name), list(value.shape)]))
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind not in NUMPY_KINDS:
            raise CodecError(f"an array of dtype {array.dtype} can't travel")
        index = buffers.add(array.tobytes())
        return msgpack.ExtType(_ARRAY, msgpack.packb([index, array.dtype.str, list(array.shape), isinstance(value, np.generic)]))
    if isinstance(value, (bool, int, float, str, bytes)) and type(value).__module__ != "builtins":
        raise CodecError(f"a {type(value).__name__} can't travel: convert it to a plain value")
    raise CodecError(f"a {type(value).__module__}.{type(value).__qualname__} can't travel")


def decode(data: bytes | bytearray | memoryview, *, max_bytes: int | None = None, share: bool = False) -> Any:
    """The value in `data`. Raises CodecError when anything is not as the layout says, or when `data` is longer than `max_bytes`.

    `share`: tensors lie in `data`, where that is writable memory and they are aligned in it, instead of in memory of their own.
    """
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
        return _unpack(header["v"], _Buffered(view[8 + header_bytes :], lengths, share and not view.readonly), 0)
    except CodecError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, struct.error, msgpack.UnpackException, OverflowError, RecursionError) as error:
        raise CodecError(f"malformed: {type(error).__name__}") from None


_SCALARS = frozenset({int, float, str, bool, bytes, type(None)})


def _unpackb(data: bytes | memoryview) -> Any:
    return msgpack.unpackb(data, raw=False, strict_map_key=False, use_list=True)


def _unpack(value: Any, buffers: _Buffered, depth: int) -> Any:
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


class _Buffered:
    """Each buffer once: a message that names one buffer many times would decode to more memory than it has bytes."""

    def __init__(self, view: memoryview, lengths: list[int], share: bool) -> None:
        self.view, self.share = view, share
        self._spans: list[tuple[int, int] | None] = list(zip(accumulate(lengths, initial=0), lengths, strict=False))

    def take(self, index: int) -> tuple[int, int]:
        """Where it begins, and how many bytes it has."""
        span = self._spans[index] if type(index) is int and index >= 0 else None
        if span is None:
            raise CodecError("a buffer is named twice or not there")
        self._spans[index] = None
        return span


def _tensor(index: int, dtype_index: int, shape: Any, *, buffers: _Buffered) -> torch.Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[dtype_index])
    start, nbytes = buffers.take(index)
    if prod(_shape(shape)) * dtype.itemsize != nbytes:
        raise CodecError("a tensor's shape and its bytes differ")
    if not nbytes:
        return torch.empty(shape, dtype=dtype)
    if buffers.share:
        flat = torch.frombuffer(buffers.view, dtype=torch.uint8, offset=start, count=nbytes)
        flat = flat.clone() if flat.data_ptr() % dtype.itemsize else flat
    else:
        flat = torch.frombuffer(bytearray(buffers.view[start : start + nbytes]), dtype=torch.uint8)
    flat = flat if dtype is torch.uint8 else flat.view(dtype)
    return flat if len(shape) == 1 else flat.reshape(shape)


def _array(index: int, dtype_text: str, shape: Any, scalar: bool, *, buffers: _Buffered) -> Any:
    import numpy as np

    if type(dtype_text) is not str or len(dtype_text) > 4 or dtype_text.lstrip("<>=|")[:1] not in NUMPY_KINDS:
        raise CodecError("an array's dtype is malformed")
    dtype, (start, nbytes) = np.dtype(dtype_text), buffers.take(index)
    if prod(_shape(shape)) * dtype.itemsize != nbytes:
        raise CodecError("an array's shape and its bytes differ")
    array = np.frombuffer(bytearray(buffers.view[start : start + nbytes]), dtype=dtype).reshape(shape)
    return array[()] if scalar else array
