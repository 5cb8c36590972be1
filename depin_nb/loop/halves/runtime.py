"""What instrumented code asks, decided once for both halves.

`Runtime` holds the decisions (expressions.py, calls.py, statements.py); `recorder.Recorder` and `replay.Replayer` differ only in what
a device-side evaluation does: the one executes and logs it, the other takes its plain result from the log. Both count device-side
evaluations, so a log entry is found by its turn, and a difference between the halves shows at once. What counts is a value's type
alone, never where it came from, so that the count is the same on every worker.
"""

from __future__ import annotations

from typing import Any

from ..split.callees import Callees
from .statements import Statements


class Runtime(Statements):
    """Answers instrumented code. Subclasses implement `_op`, `_take_values`, `_mutate`, `_silent` and `_calling`."""

    def __init__(self, callees: Callees) -> None:
        self.callees = callees
        self.turn = 0  # device-side evaluations so far in this iteration
        self.flow = "next"
        self.held: dict[int, Any] = {}  # tensors that the notebook has by value
        self.accumulators: frozenset[str] = frozenset()  # names of sums that the notebook keeps
        self.ghosts: dict[int, Any] = {}  # notebook objects that no worker has
        self._fresh: dict[int, Any] = {}

    def fresh(self, number: int, container: Any) -> Any:
        self._fresh[id(container)] = container
        return container

    def _is_fresh(self, container: Any) -> bool:
        return id(container) in self._fresh

    def _escapes(self, container: Any) -> None:
        self._fresh.pop(id(container), None)
