"""Workers of speeds 1 : 2 : 4 : 8: the share of their summed throughput that a run reaches, `local` and `sync` in turns.

Summed throughput: what each worker did a second while it computed in the `local` run of that turn, added up. Reached: all iterations over
the time from the loop's opening to its last merge. Speeds are *simulated*, and together below what this machine's cores carry. Goal: 92 %
with `local`; `sync` moves in lock-step and shows what that costs.
Run: python bench/mixed_speeds.py [--quick]
"""

from __future__ import annotations

import sys

import torch
from common import books, tasks
from common.fleet import Device, Fleet, fleet_of
from common.measure import Goal, in_turns, median, parser, report

GOAL = 0.92
RATIOS = (1, 2, 4, 8)
CARRIED = 0.2  # how far the measured ratio of the ends may be off before a note says so


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--fastest", type=float, default=0.64, help="speed of the fastest, relative to a core here (default 0.64)")
    options.add_argument("--iterations", type=int, default=900, help="iterations an epoch, over all workers (default 900)")
    options.add_argument("--epochs", type=int, default=2, help="entries of the loop (default 2)")
    options.add_argument("--hidden", type=int, default=768, help="units a layer")
    args = options.parse_args()
    torch.set_num_threads(1)
    iterations, epochs = (60, 1) if args.quick else (args.iterations, args.epochs)
    task = tasks.synthetic(iterations=iterations, batch=256, width=256, hidden=128 if args.quick else args.hidden, epochs=epochs)
    devices = [Device(f"speed-{r}", args.fastest * r / max(RATIOS)) for r in RATIOS]

    with fleet_of(devices) as fleet:
        run(fleet, tasks.synthetic(iterations=16, batch=32, width=256, hidden=32), "local")  # opens programs and warms torch up
        kinds = {strategy: lambda strategy=strategy: run(fleet, task, strategy) for strategy in ("local", "sync")}
        found = in_turns(kinds, 1 if args.quick else args.repeats)
    # a gang's workers wait for each other inside their iterations, so what each could do is known from `local`
    idle = {d.name for d in devices for book in found["local"] if d.name not in book.work}
    if idle:
        raise RuntimeError(f"{', '.join(sorted(idle))} did nothing in a run, so its rate isn't known: more --iterations")
    summed = [sum(w.rate for w in book.work.values()) for book in found["local"]]
    shares = {s: [b.throughput / rate for b, rate in zip(runs, summed, strict=True)] for s, runs in found.items()}
    rows = []
    for strategy, runs in found.items():
        share = median(shares[strategy])
        spread = f"{min(shares[strategy]):.1%} to {max(shares[strategy]):.1%}"
        did = " : ".join(f"{median([float(b.work[d.name].iterations) if d.name in b.work else 0.0 for b in runs]):.0f}" for d in devices)
        rates = " : ".join(f"{median([b.work[d.name].rate if d.name in b.work else 0.0 for b in runs]):.1f}" for d in devices)
        rows.append([strategy, f"{share:.1%}", spread, f"{median([b.window_s for b in runs]):.1f}", did, rates])
    goals = [Goal("share of the summed throughput, local", median(shares["local"]), GOAL)]
    head = ["strategy", "share", "range", "loop s", "iterations by worker", "iterations/s by worker"]
    speeds = " : ".join(f"{d.speed:.2f}" for d in devices)
    notes = [f"simulated speeds {speeds} of a core"]
    ends = [book.work[devices[-1].name].rate / book.work[devices[0].name].rate for book in found["local"]]
    if abs(median(ends) / max(RATIOS) - 1) > CARRIED:
        notes.append(f"The fastest was {median(ends):.1f} times as fast as the slowest: this machine was too busy to carry these speeds.")
    return report(head, rows, goals, quick=args.quick, notes=notes)


def run(fleet: Fleet, task: tasks.Task, strategy: str) -> books.Book:
    return books.read(task.leased(fleet.session, strategy=strategy).run_id)


if __name__ == "__main__":
    sys.exit(main())
