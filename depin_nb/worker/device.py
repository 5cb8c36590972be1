"""What a device says of itself, and how a *simulated* one is slowed down."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import psutil

from ..backends.base import DeviceProfile
from ..core.packages import MAX_PACKAGES

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
MIN_WAIT_S = 0.001  # shorter waits are saved up: the system's timer isn't finer


def facts(name: str, profile: DeviceProfile, backend: str) -> dict[str, Any]:
    """The device facts of `depin_join`: plain values, none of them trusted by the hub."""
    return {
        "name": name,
        "backend": backend,
        "kind": profile.kind,
        "simulated": profile.simulated,
        "speed": profile.speed,
        "cores": os.cpu_count() or 1,
        "memory_bytes": _memory_bytes(profile),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "pid": os.getpid(),
        "packages": _packages(),
        "compiles": _compiles(),
    }


def _packages() -> dict[str, str]:
    """{distribution: version} of what is installed here, so that a plan can say which worker lacks what a loop needs."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items())[:MAX_PACKAGES])


def _compiles() -> bool:
    from ..loop.ship.compiled import can_compile

    return can_compile()


def _memory_bytes(profile: DeviceProfile) -> int:
    """What leases may take here: what is free, within a container's limit and the profile's (a simulated device has less)."""
    bounds = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # "max": no limit; no such file: no cgroup v2
        bounds.append(int(CGROUP_LIMIT.read_text()))
    if profile.memory_gb:
        bounds.append(int(profile.memory_gb * 1e9))
    return min(bounds)


class Pacer:
    """How long a simulated device waits after each iteration so that it works at `speed` times this machine's core.

    Counts processor time where it is known, so that devices which share this machine's cores don't slow each other down twice.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._owed_s = 0.0

    def wait_s(self, wall_s: float, cpu_s: float = 0.0) -> float:
        """Seconds to wait after an iteration that took `wall_s` on the clock and `cpu_s` of a core (0 = not known)."""
        work_s = min(cpu_s, wall_s) if cpu_s > 0 else wall_s
        self._owed_s += work_s / self._speed - wall_s
        if self._owed_s < MIN_WAIT_S:
            # a device that was held up by this machine may catch up a little, never by more than one iteration
            self._owed_s = max(self._owed_s, -wall_s)
            return 0.0
        wait_s, self._owed_s = self._owed_s, 0.0
        return wait_s
