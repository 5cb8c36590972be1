"""What the notebook half holds in place of a value that stayed on a worker."""

from __future__ import annotations

from typing import Any

from ..values import is_device_type

_DEEPEST = 4
_LONG = 256


class Remote:
    """In the notebook half: a device-side value that lives on a worker. Using it says so."""

    __slots__ = ("_what",)
    _what: str

    @classmethod
    def named(cls, what: str) -> Remote:
        value = cls()  # without __init__: a replay makes many
        value._what = what
        return value

    def __repr__(self) -> str:
        try:
            what = object.__getattribute__(self, "_what")
        except AttributeError:
            what = "a value"
        return f"<{what} of the leased loop: it stayed on a worker>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self!r} has no {name!r} here: use it inside the loop, or record what you need with .item() or .detach()")


def holds_remote(value: Any, depth: int = 0) -> bool:
    """Whether a Remote is in `value` or in a container there."""
    if isinstance(value, Remote):
        return True
    if depth > _DEEPEST or type(value) not in (list, tuple, dict, set):
        return False
    parts = list(value.values() if isinstance(value, dict) else value)
    return any(holds_remote(part, depth + 1) for part in (parts if len(parts) < _LONG else parts[-16:]))


def is_plain_item(value: Any, depth: int = 0) -> bool:
    """Whether an item, as the notebook half sees it, holds nothing device-side: neither a Remote nor a tensor or module of the user's."""
    if isinstance(value, Remote) or is_device_type(type(value)):
        return False
    if depth > _DEEPEST or not isinstance(value, (list, tuple, dict)):
        return True
    parts = list(value.values() if isinstance(value, dict) else value)
    return all(is_plain_item(part, depth + 1) for part in (parts if len(parts) < _LONG else parts[-16:]))
