"""`depin`: *simulated* edge devices, worker processes on this machine that are slowed down and delayed as their profile says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..ports import WorkerSpec
from .base import fleet_order, free_names, worker_command

SUFFIX = " (simulated)"


class SimulatedBackend:
    """Devices such as `phone-1 (simulated)`, cycling phone, laptop, single-board, phone."""

    name = "depin"
    simulated = True

    def plan(self, count: int, existing: Sequence[str]) -> list[WorkerSpec]:
        """What is missing from the fleet's first `count` places, so that a device that is gone is replaced by one of its kind."""
        order = fleet_order()
        have = Counter(_profile_of(name) for name in existing)
        missing: list[str] = []
        place = 0
        while len(missing) < count - len(existing):
            kind = order[place % len(order)]
            place += 1
            if have[kind]:
                have[kind] -= 1
            else:
                missing.append(kind)
        specs, names = [], list(existing)
        for kind in missing:
            (name,) = free_names(kind, 1, names, suffix=SUFFIX)
            names.append(name)
            specs.append(WorkerSpec(name, kind, {}))
        return specs

    def command(self, spec: WorkerSpec, scheduler: str) -> tuple[list[str], dict[str, str]]:
        return worker_command(scheduler, spec.name, spec.profile, self.name)


def _profile_of(name: str) -> str:
    return name.removesuffix(SUFFIX).rpartition("-")[0]
