"""What a whole cell prints, warns and logs on a worker, sent on as it comes, in order, by a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ...core.codec import encode
from ..output import ERR, OUT, cut

Say = Callable[[bytes], None]  # codec bytes of [channel, payload], see output.py

MAX_WAITING_BYTES = 1 << 20  # said and not yet taken over by the hub: more is left out, and counted
MAX_CHUNK_BYTES = 32 << 10


class Sender:
    """Takes what is said from the thread that says it; texts printed while one is on its way go together."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._ready = threading.Condition()
        self._waiting: deque[tuple[str, Any, int]] = deque()
        self._bytes = self._left_out = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="depin-output", daemon=True)
        self._thread.start()

    def put(self, channel: str, payload: Any) -> None:
        """As `output.Said`."""
        text = isinstance(payload, str)
        for piece in _pieces(payload) if text else [payload]:
            kept, size = cut(channel, piece, MAX_CHUNK_BYTES)
            with self._ready:
                if kept is None or self._bytes + size > MAX_WAITING_BYTES:
                    self._left_out += 1
                    continue
                self._bytes += size
                self._waiting.append((channel, kept, size))
                self._ready.notify()

    def close(self) -> None:
        """Returns when all has been said, or nobody listens any more."""
        with self._ready:
            self._ended = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while (chunk := self._next()) is not None:
            try:
                self._say(encode(list(chunk)))
            except Exception:  # the cell goes on, or is ended by its lease
                with self._ready:
                    self._waiting.clear()
                    self._bytes = 0

    def _next(self) -> tuple[str, Any] | None:
        with self._ready:
            while not self._waiting and not self._ended:
                self._ready.wait()
            if not self._waiting:
                if not self._left_out:
                    return None
                said, self._left_out = f"... {self._left_out} pieces of output were more than could be sent\n", 0
                return ERR, said
            channel, payload, size = self._waiting.popleft()
            self._bytes -= size
            while channel in (OUT, ERR) and self._waiting and self._waiting[0][0] == channel and size < MAX_CHUNK_BYTES:
                _, more, length = self._waiting.popleft()
                payload, size = payload + more, size + length
                self._bytes -= length
            return channel, payload


def _pieces(text: str) -> list[str]:
    length = MAX_CHUNK_BYTES // 4  # of at most four bytes a character
    return [text[i : i + length] for i in range(0, len(text), length)]
