"""What is larger than one message travels in parts: it is announced by digest and size, and fetched or sent from an offset on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .errors import CodecError

WHOLE_BYTES = 1 << 20  # up to here one message carries it
MIN_PART_BYTES = 256 << 10
MAX_PART_BYTES = 8 << 20
PART_ROUND_TRIPS = 20  # a part takes so many times as long as a round trip: asking costs a twentieth
MAX_ANNOUNCED_BYTES = 64 << 30
_DIGEST = re.compile(r"[0-9a-f]{64}")

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Announced:
    """What is to come in parts: `digest` (sha256 of all of it, hex) and `size_bytes`."""

    digest: str
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {"digest": self.digest, "bytes": self.size_bytes}


def is_digest(value: Any) -> bool:
    """Whether it is a sha256 in hexadecimal, and so fit for a file's name."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def announced(data: Any, *, max_bytes: int = MAX_ANNOUNCED_BYTES) -> Announced:
    """The announcement in `data`. Raises CodecError when it isn't one, or is of more than `max_bytes`."""
    if not isinstance(data, dict) or set(data) != {"digest", "bytes"}:
        raise CodecError("not the announcement of a transfer")
    digest, size = data["digest"], data["bytes"]
    if not is_digest(digest) or type(size) is not int or size < 0:
        raise CodecError("the announcement of a transfer is malformed")
    if size > max_bytes:
        raise CodecError(f"a transfer of {size} bytes is announced where at most {max_bytes} are allowed")
    return Announced(digest, size)


def part_bytes(mbit_s: float, latency_ms: float) -> int:
    """How long a part should be on a link of that rate and round trip; WHOLE_BYTES where it isn't known (0)."""
    if mbit_s <= 0 or latency_ms <= 0:
        return WHOLE_BYTES
    wanted = PART_ROUND_TRIPS * (mbit_s * 1e6 / 8) * (latency_ms / 1000)
    return int(min(max(wanted, MIN_PART_BYTES), MAX_PART_BYTES))


def megabytes(done: int, size: int) -> str:
    """How far a transfer is, for people: `12 of 40 MB`."""
    unit = 1e6
    return f"{done / unit:.0f} of {size / unit:.0f} MB" if size >= 10 * unit else f"{done / unit:.1f} of {size / unit:.1f} MB"
