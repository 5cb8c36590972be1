"""Compute utilisation on thin links: four workers of *simulated* speed at 20 Mbit/s up, 40 ms, and at 5 Mbit/s up, 80 ms (simulated links).

Utilisation: the share of the workers' time, from the loop's opening to its last merge, in which they computed what the model contains.
Beside it the same devices without a link's limits, in turns, so that what merging alone costs can be told from what the link costs. Devices
are slow enough that this machine's cores carry them all. Goals: 90 % and 80 %.
Run: python bench/thin_links.py [--quick]
"""

from __future__ import annotations

import sys

import torch
from common import books, tasks
from common.fleet import Device, Fleet, fleet_of
from common.measure import Goal, in_turns, median, parser, report

LINKS = {  # up and down in Mbit/s, round trip in ms
    "20 Mbit/s, 40 ms": (20.0, 50.0, 40.0),
    "5 Mbit/s, 80 ms": (5.0, 20.0, 80.0),
    "no limits": (0.0, 0.0, 0.0),
}
GOALS = {"20 Mbit/s, 40 ms": 0.90, "5 Mbit/s, 80 ms": 0.80}


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--speed", type=float, default=0.25, help="of each, relative to a core of this machine (default 0.25)")
    options.add_argument("--iterations", type=int, default=600, help="iterations an epoch, over all workers (default 600)")
    options.add_argument("--epochs", type=int, default=3, help="entries of the loop (default 3)")
    options.add_argument("--hidden", type=int, default=768, help="units a layer (default 768: 0.8 M parameters)")
    options.add_argument("--strategy", default="local", help="auto, sync or local (default local)")
    options.add_argument("--inner-steps", type=int, default=None, help="iterations a worker between merges (default: the strategy's)")
    args = options.parse_args()
    torch.set_num_threads(1)
    iterations, epochs = (40, 1) if args.quick else (args.iterations, args.epochs)
    hidden = 128 if args.quick else args.hidden
    task = tasks.synthetic(iterations=iterations, batch=256, width=256, hidden=hidden, epochs=epochs)

    def of(name: str) -> books.Book:
        up, down, latency = LINKS[name]
        devices = [Device(f"device-{i + 1}", args.speed, up, down, latency) for i in range(args.workers)]
        with fleet_of(devices) as fleet:
            return run(fleet, task, args.strategy, args.inner_steps)

    found = in_turns({name: lambda name=name: of(name) for name in LINKS}, 1 if args.quick else args.repeats)
    rows, goals = [], []
    for name, runs in found.items():
        shares = [b.utilisation(args.workers) for b in runs]
        reached = median(shares)
        up = median([b.status.bytes_up / b.iterations for b in runs if b.status])
        down = median([b.status.bytes_down / b.iterations for b in runs if b.status])
        merges = median([float(len(b.merges)) for b in runs])
        window = median([b.window_s for b in runs])
        pace = median([1e3 * sum(w.seconds for w in b.work.values()) / b.iterations for b in runs])
        spread = f"{min(shares):.1%} to {max(shares):.1%}"
        cells = [f"{reached:.1%}", spread, f"{window:.1f}", f"{merges:.0f}", f"{pace:.0f}", f"{up / 1e3:.1f}", f"{down / 1e3:.1f}"]
        rows.append([name, *cells])
        if name in GOALS:
            goals.append(Goal(f"utilisation at {name}", reached, GOALS[name]))
    head = ["simulated link", "utilisation", "range", "loop s", "merges", "ms an iteration", "kB up an iteration", "kB down an iteration"]
    sizes = f"{args.workers} workers at {args.speed} of a core, {iterations} iterations x {epochs}, strategy {args.strategy}"
    return report(head, rows, goals, quick=args.quick, notes=[sizes])


def run(fleet: Fleet, task: tasks.Task, strategy: str, inner_steps: int | None) -> books.Book:
    """One run on that fleet, after a short one that opens programs and warms torch up."""
    warm = tasks.synthetic(iterations=2 * len(fleet.running), batch=32, width=256, hidden=32)
    warm.leased(fleet.session, strategy="local", inner_steps=1)
    ran = task.leased(fleet.session, strategy=strategy, inner_steps=inner_steps)
    return books.read(ran.run_id)


if __name__ == "__main__":
    sys.exit(main())
