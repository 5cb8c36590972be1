"""`local`: plain worker processes on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from ..ports import WorkerSpec
from .base import free_names, worker_command


class LocalBackend:
    """Workers `local-1`, `local-2`, ... at this machine's full speed, without a price."""

    name = "local"
    simulated = False

    def plan(self, count: int, existing: Sequence[str]) -> list[WorkerSpec]:
        return [WorkerSpec(name, "local", {}) for name in free_names("local", count - len(existing), existing)]

    def command(self, spec: WorkerSpec, scheduler: str) -> tuple[list[str], dict[str, str]]:
        return worker_command(scheduler, spec.name, spec.profile, self.name)
