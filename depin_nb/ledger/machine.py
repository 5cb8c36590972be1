"""LiteSVM on a thread of its own.

Its virtual machine leaves the x87 unit of the thread that it ran on in disorder: the next `numpy.longdouble` there is nonsense, and so
is what scipy computes while it is imported (seen with solders 0.29 on x86-64). The unit belongs to a thread, so it gets one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from solders.litesvm import LiteSVM


class Machine:
    """Any method of LiteSVM, run on the machine's own thread. Close it when done."""

    def __init__(self, make: Callable[[], LiteSVM]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="litesvm")
        self._svm = self._thread.submit(make).result()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return self._thread.submit(getattr(self._svm, name), *args).result()

        return call

    def close(self) -> None:
        self._thread.shutdown(wait=True)
