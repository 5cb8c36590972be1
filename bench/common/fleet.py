"""A hub in a state folder of its own, with devices that a benchmark names: *simulated* speeds and links, real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.measure import CHECKOUT, say

JOIN_S = 120.0
STEP_S = 0.05


@dataclass(frozen=True)
class Device:
    """`speed` relative to a core of this machine; links in Mbit/s (0 = as fast as it goes); `latency_ms` a round trip."""

    name: str
    speed: float = 1.0
    up_mbit_s: float = 0.0
    down_mbit_s: float = 0.0
    latency_ms: float = 0.0


@dataclass
class Running:
    """A device's process. `alive`: (from, to) on the monotonic clock while it could compute; the last `to` is None as long as it can."""

    device: Device
    process: subprocess.Popen[bytes]
    alive: list[tuple[float, float | None]] = field(default_factory=list)

    def live_s(self, begin: float, end: float) -> float:
        """Seconds between `begin` and `end` in which it could compute."""
        return sum(max(0.0, min(to or end, end) - max(a, begin)) for a, to in self.alive)

    def pause(self) -> None:
        if self.alive and self.alive[-1][1] is None:
            self.alive[-1] = (self.alive[-1][0], time.monotonic())

    def live(self) -> None:
        if not self.alive or self.alive[-1][1] is not None:
            self.alive.append((time.monotonic(), None))


class Fleet:
    """The session, and the devices that have joined it."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.running: dict[str, Running] = {}

    def start(self, device: Device) -> Running:
        """Starts the process; `await_joined` says when it is here. One that is started again keeps its record of when it was alive."""
        from depin_nb.backends.base import WORKER_ENV

        argv = [sys.executable, str(CHECKOUT / "bench" / "common" / "device.py"), self.session.info.scheduler, device.name]
        argv += ["--speed", str(device.speed), "--up", str(device.up_mbit_s), "--down", str(device.down_mbit_s)]
        argv += ["--latency", str(device.latency_ms)]
        with Path(os.environ["DEPIN_HOME"], "devices.log").open("ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **WORKER_ENV})
        before = self.running.get(device.name)
        self.running[device.name] = Running(device, process, before.alive if before else [])
        return self.running[device.name]

    def here(self) -> set[str]:
        """The devices that the hub sees."""
        return {d.name for d in self.session.workers() if d.state not in ("lost", "left")}

    def await_joined(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + JOIN_S
        while not set(names) <= self.here():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{sorted(set(names) - self.here())} did not join; see devices.log in the state folder")
            time.sleep(STEP_S)
        for name in names:
            self.running[name].live()

    def end(self) -> None:
        for running in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGCONT)
            assert running.process.stdin is not None
            with contextlib.suppress(OSError):
                running.process.stdin.close()
        for running in self.running.values():
            try:
                running.process.wait(10)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()


@contextlib.contextmanager
def state_folder() -> Iterator[Path]:
    """A new state folder as DEPIN_HOME; its hub is stopped and the folder removed at the end."""
    folder = tempfile.mkdtemp(prefix="depin-bench-")
    before = os.environ.get("DEPIN_HOME")
    os.environ["DEPIN_HOME"] = folder
    from depin_nb import wiring

    try:
        yield Path(folder)
    finally:
        try:
            wiring.down()
        finally:
            if before is None:
                del os.environ["DEPIN_HOME"]
            else:
                os.environ["DEPIN_HOME"] = before
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fleet_of(devices: Sequence[Device]) -> Iterator[Fleet]:
    """A hub of its own with these devices, all of them here."""
    from depin_nb import wiring

    with state_folder():
        fleet = Fleet(wiring.connect("depin", workers=0))
        try:
            say(f"starting {len(devices)} simulated devices")
            for device in devices:
                fleet.start(device)
            fleet.await_joined([d.name for d in devices])
            yield fleet
        finally:
            fleet.end()
