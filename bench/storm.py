"""A storm: a fault at every merge (a device is killed, stopped for a while, or cut off), against the same run in quiet.

Six devices of *simulated* speed train an MLP on scikit-learn's digits; the faults are real: SIGKILL, SIGSTOP and SIGCONT, and every
connection to the hub shut. What was killed or gave up starts again after --away seconds. Share of live compute: seconds of computing that
the model contains, over the seconds in which devices were there and running. Recovery: from a fault to the next merge, and to the hub's
notice of it. A round is stalled when no merge comes for ten times as long as between the quiet run's merges, and 10 s. Each index batch
must be in exactly one merged lease. Goals: 90 % of live compute, held-out loss within 1 % of the quiet run's (mean over the turns' seeds),
no stalled round.
Run: python bench/storm.py [--quick]
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean
from typing import Any

import torch
from common import books, tasks
from common.fleet import Device, Fleet, Running, fleet_of
from common.measure import Goal, in_turns, median, parser, report, say

FAULTS = ("kill", "stop", "cut")
STALL_FACTOR, STALL_S = 10.0, 10.0
POLL_S = 0.05


@dataclass
class Storm:
    """Throws a fault at each new merge, in a thread of its own, until `over`. `thrown`: (wall clock, kind, device)."""

    fleet: Fleet
    seed: int
    away_s: float
    kinds: tuple[str, ...] = FAULTS
    thrown: list[tuple[float, str, str]] = field(default_factory=list)
    merges: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def saw(self, status: Any) -> None:
        """Told of every status of the run."""
        self.merges = status.merges

    def blow(self) -> None:
        chance, at = random.Random(self.seed), 0
        due: list[tuple[float, Running]] = []  # stopped or gone ones, and when they come back
        while not self.over.wait(POLL_S):
            now = time.monotonic()
            back, due = [r for t, r in due if t <= now], [(t, r) for t, r in due if t > now]
            for running in back:
                self._back(running)
            self._look(due, now)
            if self.merges > at:
                at = self.merges
                here = [r for r in self.fleet.running.values() if r.alive[-1][1] is None]
                if len(here) > 1:  # somebody has to go on
                    running = chance.choice(here)
                    self._throw(running, chance.choice(self.kinds), due, now)
        for _, running in due:
            with suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGCONT)

    def _throw(self, running: Running, kind: str, due: list[tuple[float, Running]], now: float) -> None:
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "cut": signal.SIGUSR1}[kind]
        self.thrown.append((time.time(), kind, running.device.name))
        os.kill(running.process.pid, number)
        if kind == "kill":
            running.process.wait()
        if kind != "cut":
            running.pause()
            due.append((now + self.away_s, running))

    def _look(self, due: list[tuple[float, Running]], now: float) -> None:
        """A device that ended because it was cut off starts again too; one that has joined is live."""
        here = self.fleet.here()
        for name, running in list(self.fleet.running.items()):
            if running.process.poll() is not None:
                if running not in [r for _, r in due]:
                    running.pause()
                    due.append((now + self.away_s, running))
            elif name in here and running not in [r for _, r in due]:
                running.live()

    def _back(self, running: Running) -> None:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGCONT)
            running.live()
        else:
            self.fleet.start(running.device)


@dataclass(frozen=True)
class Weather:
    """What a run came to. `share`: of live compute; `noticed_s`, `merged_s`: of each fault; `gaps_s`: between merges."""

    share: float
    loss: float
    gaps_s: tuple[float, ...]
    merged_s: tuple[float, ...] = ()
    noticed_s: tuple[float, ...] = ()
    faults: int = 0
    wrong: int = 0
    window_s: float = 0.0


def weather(book: books.Book, ran: tasks.Leased, live_s: float, thrown: list[tuple[float, str, str]]) -> Weather:
    times = [at for at, _ in book.merges]
    inside = [t for t in thrown if t[0] < book.ended]
    merged = [next(at for at in times if at > when) - when for when, _, _ in inside]
    noticed = []
    for when, _, name in inside:
        again = min((at for at, _, other in inside if other == name and at > when), default=book.ended)  # what is noticed later is that one
        noticed += [at - when for at, worker in sorted(book.lost) if worker == name and when < at <= again][:1]
    return Weather(
        share=sum(w.seconds for w in book.work.values()) / live_s,
        loss=ran.namespace["held_out"][-1],
        gaps_s=tuple(b - a for a, b in pairwise(times)),
        merged_s=tuple(merged),
        noticed_s=tuple(noticed),
        faults=len(inside),
        wrong=book.twice + book.missing,
        window_s=book.window_s,
    )


def main() -> int:
    options = parser(__doc__, repeats=5)
    options.add_argument("--workers", type=int, default=6)
    options.add_argument("--speed", type=float, default=0.2, help="of each, relative to a core of this machine (default 0.2)")
    options.add_argument("--epochs", type=int, default=40, help="passes over the digits (default 40)")
    options.add_argument("--hidden", type=int, default=768, help="units a layer")
    options.add_argument(
        "--away", type=float, default=3.0, metavar="S", help="how long a device is stopped, or gone before it starts again"
    )
    options.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="kinds of faults (default all)")
    args = options.parse_args()
    torch.set_num_threads(1)
    epochs, hidden = (3, 64) if args.quick else (args.epochs, args.hidden)
    devices = [Device(f"device-{i + 1}", args.speed) for i in range(3 if args.quick else args.workers)]
    turn = {"quiet": 0, "storm": 0}

    def of(name: str) -> Weather:
        seed, turn[name] = turn[name], turn[name] + 1
        task = tasks.digits(epochs=epochs, batch=32, hidden=hidden, seed=seed)
        with fleet_of(devices) as fleet:
            tasks.synthetic(iterations=16, batch=32, width=64, hidden=32).leased(fleet.session, strategy="local", inner_steps=1)
            storm = Storm(fleet, seed, args.away, tuple(args.faults) if name == "storm" else ())
            thread = threading.Thread(target=storm.blow, name="storm", daemon=True)
            if name == "storm":
                thread.start()
            try:
                begun, wall = time.monotonic(), time.time()
                ran = task.leased(fleet.session, storm.saw, strategy="local")
            finally:
                storm.over.set()
                if name == "storm":
                    thread.join(30)
            book = books.read(ran.run_id)
            opened, ended = begun + book.begun - wall, begun + book.ended - wall
            live_s = sum(r.live_s(opened, ended) for r in fleet.running.values())
            found = weather(book, ran, live_s, storm.thrown)
            say(f"{name}: {found.faults} faults in {found.window_s:.0f} s, share {found.share:.1%}, loss {found.loss:.4f}")
            return found

    found = in_turns({name: lambda name=name: of(name) for name in turn}, 1 if args.quick else args.repeats)
    stall_s = max(STALL_S, STALL_FACTOR * median([gap for w in found["quiet"] for gap in w.gaps_s]))
    stalled = sum(gap > stall_s for w in found["storm"] for gap in w.gaps_s)
    loss = {name: mean(w.loss for w in runs) for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        share = median([w.share for w in runs])
        merged, noticed = [s for w in runs for s in w.merged_s], [s for w in runs for s in w.noticed_s]
        cells = [f"{share:.1%}", f"{min(w.share for w in runs):.1%} to {max(w.share for w in runs):.1%}", f"{loss[name]:.4f}"]
        faults = sum(w.faults for w in runs)
        cells += [f"{faults}", f"{median([w.window_s for w in runs]):.0f}", f"{len(noticed)}", spread(noticed), spread(merged)]
        rows.append([name, *cells, f"{max((g for w in runs for g in w.gaps_s), default=0.0):.1f}"])
    goals = [
        Goal("share of live compute that reaches the model", median([w.share for w in found["storm"]]), 0.90),
        Goal("held-out loss against the quiet run's", loss["storm"] / loss["quiet"], 1.01, "{:.3f} x", True),
        Goal(f"stalled rounds (over {stall_s:.0f} s)", float(stalled), 0.0, "{:.0f}", True),
        Goal("index batches lost or merged twice", float(sum(w.wrong for runs in found.values() for w in runs)), 0.0, "{:.0f}", True),
    ]
    head = [
        "weather",
        "share",
        "range",
        "held-out loss",
        "faults",
        "loop s",
        "noticed",
        "after s p50 / max",
        "next merge s p50 / max",
        "longest gap s",
    ]
    sizes = f"{len(devices)} devices at {args.speed} of a core, {epochs} passes; faults: {', '.join(args.faults)}; away {args.away} s"
    return report(head, rows, goals, quick=args.quick, notes=[sizes])


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} / {max(seconds):.2f}" if seconds else "-"


if __name__ == "__main__":
    sys.exit(main())
