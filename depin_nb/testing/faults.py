"""Faults on purpose: real kills of real worker processes, at a chosen place of a run, for the quickstart and tests; and the histories of
`histories.py`, played from the command line: `python -m depin_nb.testing.faults SEED [SEED ..]`, `--faults 0,2` for some of its faults,
`--count N` for so many seeds from SEED on."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

POLL_S = 0.05


@dataclass
class Kill:
    """A kill that waits for its moment. `done` is set once the process is gone; `iteration` is where the run stood."""

    name: str
    done: threading.Event = field(default_factory=threading.Event)
    pid: int | None = None
    iteration: int | None = None

    def __repr__(self) -> str:
        if self.pid is None:
            return f"{self.name} was not killed"
        return f"{self.name} (process {self.pid}) was killed at iteration {self.iteration}"


def kill_when(session: Any, name: str, when: Callable[[Any, Any], bool]) -> Kill:
    """Sends SIGKILL to the worker `name` (as shown, or without its *(simulated)*) as soon as `when(status, device)` holds.

    Watches in a thread of its own, which ends with the kill or with the process.
    """
    kill = Kill(name)

    def watch() -> None:
        while not kill.done.wait(POLL_S):
            for status in session.statuses():
                device = next((d for d in status.devices if d.name in (name, f"{name} (simulated)")), None)
                if device is not None and not status.ended and when(status, device):
                    kill.pid = pid_of(session, device.name)
                    kill.iteration = status.iterations_done
                    os.kill(kill.pid, signal.SIGKILL)
                    kill.done.set()
                    return

    threading.Thread(target=watch, name=f"kill {name}", daemon=True).start()
    return kill


def kill_halfway(name: str, session: Any = None, *, fraction: float = 0.5) -> Kill:
    """Kills a worker in the middle of a lease, once a run has done `fraction` of its iterations (of those that are known of)."""
    if session is None:
        from ..wiring import current

        session = current()
    return kill_when(session, name, lambda status, device: device.state == "working" and (status.fraction or 0.0) >= fraction)


def pid_of(session: Any, name: str) -> int:
    """The process of a worker that this hub started on this machine. Raises KeyError."""
    workers = session.hub.call("hub")["workers"]
    return next(int(w["pid"]) for w in workers if w["name"] == name)


def main(argv: Sequence[str] | None = None) -> int:
    """Plays histories; prints each that breaks a promise, with as few faults as still break one. 1 when there is such a one."""
    from .histories import History, history, shrunk
    from .playing import Player

    parser = argparse.ArgumentParser(
        prog="python -m depin_nb.testing.faults", description="Plays fault histories on a hub in this process."
    )
    parser.add_argument("seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--count", type=int, default=1, help="so many seeds from each one on (default: 1)")
    parser.add_argument("--faults", help="only these of the history's faults, by number, such as 0,2 (- for none)")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what happens, in simulated seconds")
    said = parser.parse_args(argv)
    wrong = 0
    with Player() as player:

        def fails(plan: History) -> bool:
            return bool(player.play(plan).broken)

        for seed in (first + i for first in said.seeds for i in range(said.count)):
            plan = history(seed)
            if said.faults is not None:
                plan = plan.only([int(number) for number in said.faults.split(",") if number.isdigit()])
            played = player.play(plan)
            if played.broken and said.faults is None:
                played = player.play(shrunk(plan, fails))
            wrong += bool(played.broken)
            if played.broken or said.verbose:
                print(played, *(("  " + line) for line in played.told), sep="\n")
    print(f"{wrong} of {len(said.seeds) * said.count} histories broke a promise")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
