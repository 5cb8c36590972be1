"""Large payloads as frames of their own in Dask's messages: neither copied into the message nor pickled.

Dask's own way (`to_serialize`) sends the payload's type pickled; this family's header names nothing, so nothing is opened but bytes.
8 MiB take about 0.6 of the time (bench/parts.py).
"""

from __future__ import annotations

from typing import Any

from ..core.errors import CodecError
from ..core.parts import Buffer

FAMILY = "depin-frame"
FRAMED_BYTES = 256 << 10  # below that a copy costs nothing


def register() -> None:
    """Makes Dask read such frames in this process. A second call does no harm. Imports distributed."""
    from distributed.protocol.serialize import register_serialization_family

    register_serialization_family(FAMILY, None, lambda header, frames: _joined(frames))


def framed(data: Buffer) -> Any:
    """`data` as Dask sends it: by reference, uncompressed (weights and changes hardly compress). The other side gets a buffer."""
    from distributed.protocol.serialize import Serialized

    return Serialized({"serializer": FAMILY, "compression": (None,)}, [memoryview(data).cast("B")])


def beside(message: Any) -> Any:
    """The message with its `data`, where that is large, framed."""
    data = message.get("data") if isinstance(message, dict) else None
    if isinstance(data, (bytes, bytearray, memoryview)) and len(data) > FRAMED_BYTES:
        return {**message, "data": framed(data)}
    return message


def unframed(data: Any) -> Buffer:
    """What `framed` was given, where Dask hands messages on unopened (the scheduler). Raises CodecError for anything but bytes."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return data
    header, frames = getattr(data, "header", None), getattr(data, "frames", None)
    if not isinstance(header, dict) or header.get("serializer") != FAMILY or any(header.get("compression") or ()) or not frames:
        raise CodecError("not bytes")
    return _joined(frames)


def _joined(frames: Any) -> Buffer:
    return memoryview(frames[0]).cast("B") if len(frames) == 1 else b"".join(frames)
