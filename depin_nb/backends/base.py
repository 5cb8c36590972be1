"""Device profiles, and what every backend needs to start a worker process."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..core.errors import ConfigError

# Dask's nanny trims the heap so eagerly that torch on a CPU runs 1.5 to 2 times slower; glibc reads these once, at the process's start.
# One thread a worker for the numeric libraries: workers share this machine's cores.
WORKER_ENV: Mapping[str, str] = {
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_MMAP_THRESHOLD_": "536870912",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class DeviceProfile:
    """A kind of device. `speed`: relative to one core of the machine it runs on; links in Mbit/s (0 = as fast as it goes).

    `latency_ms` is added to each exchange with the hub (a round trip). `memory_gb`: what leases may take there at most (0 = what is free).
    """

    name: str
    kind: str
    simulated: bool
    speed: float = 1.0
    up_mbit_s: float = 0.0
    down_mbit_s: float = 0.0
    latency_ms: float = 0.0
    memory_gb: float = 0.0
    about: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1000 or min(self.up_mbit_s, self.down_mbit_s, self.latency_ms, self.memory_gb) < 0:
            raise ConfigError(f"the profile {self.name!r} has a speed, rate, latency or memory that can't be")


@cache
def _book() -> dict[str, Any]:
    return json.loads(files(__package__).joinpath("profiles.json").read_text())


@cache
def profiles() -> Mapping[str, DeviceProfile]:
    """All profiles of profiles.json by name."""
    return {name: DeviceProfile(name=name, **data) for name, data in _book()["profiles"].items()}


def profile(name: str) -> DeviceProfile:
    """One profile. Raises ConfigError for an unknown name."""
    known = profiles()
    if name not in known:
        raise ConfigError(f"{name!r} is not a device profile", hint=f"Known: {', '.join(known)}.")
    return known[name]


def fleet_order() -> tuple[str, ...]:
    """The profiles that a simulated fleet cycles through."""
    return tuple(_book()["fleet"])


def worker_command(scheduler: str, name: str, profile_name: str, backend: str) -> tuple[list[str], dict[str, str]]:
    """The argv and extra environment of a worker process that dials `scheduler`; the hub ends it."""
    argv = [sys.executable, "-m", "depin_nb.worker", scheduler, "--name", name, "--profile", profile_name, "--backend", backend]
    return [*argv, "--of-hub"], dict(WORKER_ENV)


def free_names(stem: str, count: int, existing: Sequence[str], *, suffix: str = "") -> list[str]:
    """`count` names `stem-1`, `stem-2`, ... (with `suffix`), the lowest that aren't in `existing`."""
    taken, number = set(existing), 1
    names: list[str] = []
    while len(names) < count:
        name = f"{stem}-{number}{suffix}"
        if name not in taken:
            names.append(name)
        number += 1
    return names
