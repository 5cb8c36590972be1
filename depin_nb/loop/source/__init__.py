"""What the leased loop iterates: drawn in the kernel from the user's own iterable, one unit an iteration, opened on the worker.

A `DataLoader` is drawn from its sampler (the user's shuffle, weights, seed), so a unit is a list of indices; so are units of lists and
tensors; `range` gives values; any other iterable gives its items. A progress bar stays in the notebook and keeps ticking.
"""

from __future__ import annotations

from typing import Any

from ...core.codec import decode, encode
from .opener import Framed, Opener
from .policy import WAYS, check_way
from .recipe import stand_in, standing_in
from .remote import Remote, holds_remote, is_plain_item
from .source import Source
from .wrappers import Enumerate, Fetching, Zip, wrap


def pack(data: Any) -> bytes:
    return encode(data)


def unpack(data: bytes) -> Any:
    return decode(data)


__all__ = [
    "WAYS",
    "Enumerate",
    "Fetching",
    "Framed",
    "Opener",
    "Remote",
    "Source",
    "Zip",
    "check_way",
    "holds_remote",
    "is_plain_item",
    "pack",
    "stand_in",
    "standing_in",
    "unpack",
    "wrap",
]
