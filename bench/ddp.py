"""Time per sample: two workers of a hub (`sync`, `local`) against torch DistributedDataParallel (gloo, two processes) and one process.

The same MLP, data and number of samples for each; one thread a process; all on this machine, in turns. The loop is timed: for plain torch
and DDP from its first step to its last (processes running, model warm), for a hub from the first merge to the last; the whole call is what
a user waits for, with probe, shipping, merges, replay and settlement. Goals: `local` at most as long as DDP; `sync` at most 1.1 x DDP where
an iteration takes 50 ms or more (the default; see --hidden).
Run: python bench/ddp.py [--quick]
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from common import books, tasks
from common.fleet import state_folder
from common.measure import CHECKOUT, Goal, in_turns, median, parser, ratios, report, say

WORLD = 2
GOALS = {"local": 1.0, "sync": 1.1}


class Ranks:
    """DDP's processes, which wait between passes."""

    def __init__(self, setup: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        script = str(CHECKOUT / "bench" / "common" / "ddp_rank.py")
        self.processes = [
            subprocess.Popen([sys.executable, script, str(r), str(WORLD), str(port)], stdin=-1, stdout=-1, text=True) for r in range(WORLD)
        ]
        self._tell(json.dumps(setup))

    def _tell(self, line: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()

    def seconds(self) -> float:
        """One pass."""
        self._tell("go")
        out = self.processes[0].stdout
        assert out is not None
        return float(out.readline())

    def end(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait(30)


@contextmanager
def ranks(setup: str) -> Iterator[Ranks]:
    made = Ranks(setup)
    try:
        yield made
    finally:
        made.end()


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--iterations", type=int, default=400, help="iterations of one pass, over all workers (default 400)")
    options.add_argument("--batch", type=int, default=256, help="samples an iteration and worker")
    options.add_argument("--hidden", type=int, default=1280, help="units a layer: 1280 takes 50 ms an iteration on one core of 2026")
    args = options.parse_args()
    repeats = 1 if args.quick else args.repeats
    iterations, hidden = (60, 128) if args.quick else (args.iterations, args.hidden)
    task = tasks.synthetic(iterations=iterations, batch=args.batch, width=256, hidden=hidden)
    samples = iterations * args.batch
    torch.set_num_threads(1)
    from depin_nb import wiring

    with state_folder(), ranks(task.setup) as ddp:
        session = wiring.connect("local", workers=WORLD)

        def hub(strategy: str) -> tuple[float, float]:
            ran = task.leased(session, strategy=strategy)
            book = books.read(ran.run_id)
            return book.pace_s() / args.batch, ran.seconds / samples

        def plain() -> tuple[float, float]:
            seconds = task.plain()[0] / samples
            return seconds, seconds

        def distributed() -> tuple[float, float]:
            seconds = ddp.seconds() / samples
            return seconds, seconds

        kinds = {"one process": plain, "DDP x 2": distributed, "sync x 2": lambda: hub("sync"), "local x 2": lambda: hub("local")}
        if not args.quick:
            say("warming up: a pass of each that doesn't count")
            in_turns(kinds, 1)
        found = in_turns(kinds, repeats)
    loops = {name: [loop for loop, _ in pairs] for name, pairs in found.items()}
    rows = []
    for name, pairs in found.items():
        loop, whole = median(loops[name]), median([w for _, w in pairs])
        against = ratios(loops[name], loops["DDP x 2"])
        spread = f"{1e6 * min(loops[name]):.1f} to {1e6 * max(loops[name]):.1f}"
        rows.append([name, f"{1e6 * loop:.1f}", spread, f"{against:.2f}", f"{1e6 * whole:.1f}"])
    against_ddp = {s: ratios(loops[f"{s} x 2"], loops["DDP x 2"]) for s in GOALS}
    goals = [Goal(f"{s} against DDP, time per sample", against_ddp[s], goal, "{:.2f} x", True) for s, goal in GOALS.items()]
    each_ms = 1e3 * median(loops["one process"]) * args.batch
    each = f"one process: {each_ms:.0f} ms an iteration of {args.batch} samples; median of {repeats}"
    return report(["way", "us a sample", "range", "x DDP", "us a sample, whole call"], rows, goals, quick=args.quick, notes=[each])


if __name__ == "__main__":
    sys.exit(main())
