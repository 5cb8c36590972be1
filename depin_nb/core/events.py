"""What a run's journal and displays are told, in order: one small record per thing that happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """`kind` is a word such as `lease`, `merged`, `worker-lost`, `budget-warning`, `paid`, `notice`; `at` is wall time in seconds."""

    run_id: str
    kind: str
    at: float
    data: dict[str, Any] = field(default_factory=dict)
