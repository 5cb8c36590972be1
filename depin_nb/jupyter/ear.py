"""Hears the panel's buttons, also while a cell blocks the kernel's main thread.

JupyterLab sends a widget's messages to a subshell, so a blocked main thread wouldn't matter; but ipykernel 7.4 routes a message to the
shell that last *published* on its comm, which here is the blocked one (`kernelbase.shell_channel_thread_main`,
`BaseComm._reply_subshell_for`). That routing runs in the kernel's shell channel thread, which is free. An `Ear` takes its place on one
comm only: it reads the message right there and leaves the route to the frontend's own choice. Kernels without that method deliver in the
ordinary way, to a subshell where there is one and after the cell where there is none; the ear then hears it there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

ACTIONS = ("pause", "resume", "stop", "budget")
HELLO = "hello"
MOST_TEXT = 200
REMEMBERED = 256  # messages; a click arrives at most twice, within the cell
ROUTE = "_reply_subshell_for"


class Ear:
    """Calls `handle(action, value)` once for each click, on a thread of its own, in the order of the clicks.

    `seen` is set once a frontend has said that it shows the panel.
    """

    def __init__(self, handle: Callable[[str, str | None], None]) -> None:
        self.seen = Event()
        self._handle = handle
        self._known: deque[tuple[str, int]] = deque(maxlen=REMEMBERED)
        self._lock = Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    def attach(self, comm: Any) -> bool:
        """Listens on `comm` from the shell channel thread; False where this kernel has no such hook."""
        if not callable(getattr(comm, ROUTE, None)):
            return False

        def route(data: Any, default: Any) -> Any:
            if isinstance(data, dict):
                self.hear(data.get("content"))
            return default

        try:
            setattr(comm, ROUTE, route)
        except AttributeError:
            return False
        return True

    def hear(self, content: Any) -> bool:
        """Takes a message `{from, seq, action, value}`; False when it isn't one or was heard before. Only queues; never raises."""
        if not isinstance(content, dict):
            return False
        action, value, sender, seq = (content.get(k) for k in ("action", "value", "from", "seq"))
        if not isinstance(sender, str) or len(sender) > MOST_TEXT or type(seq) is not int:
            return False
        if action == HELLO:
            self.seen.set()
            return True
        if action not in ACTIONS or not (value is None or (isinstance(value, str) and len(value) <= MOST_TEXT)):
            return False
        with self._lock:
            if self._closed or (sender, seq) in self._known:
                return False
            self._known.append((sender, seq))
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="depin-panel")
            self._executor.submit(self._handle, action, value)
        return True

    def close(self) -> None:
        """Hears nothing more. What was heard is still handled."""
        with self._lock:
            self._closed = True
            if self._executor is not None:
                self._executor.shutdown(wait=False)
                self._executor = None
