"""What an error says when memory is what was lacking."""

from __future__ import annotations

_SAID = ("can't allocate memory", "not enough memory", "out of memory")  # torch's allocators, on CPU and accelerators


def out_of_memory(error: BaseException) -> bool:
    """Whether the error is Python's or torch's way to say that memory was lacking."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)
