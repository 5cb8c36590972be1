"""What leasing a loop costs: the worker half against the plain loop, replay an iteration, and finding, analysing and shipping a cell.

Plain and recorded loops run in turn (A B A B) in this process, on one thread, and the best of each counts; times are the process' CPU
time, so that other work on the machine matters less. Only the loop itself is measured: no hub, no network.
With --hub the whole of `%%depin train --strategy local` on one worker of a real hub (probe, shipping, merges, replay) is timed against the
plain cell instead, by the clock. The goals are issue 3's: 5 % where an iteration takes 20 ms, replay under 50 us an iteration, analysis
under 200 ms a cell.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import linecache
import os
import tempfile
import time
from typing import Any

import torch

from depin_nb.core.lease import EntrySpec, Lease, StrategyConfig, Unit
from depin_nb.core.state import State
from depin_nb.loop.cell import LeasedCell
from depin_nb.loop.contract import Part, Results
from depin_nb.loop.halves.record import WorkerHalf

SETUP = """
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
X = torch.randn({rows} * {batch}, {width})
Y = torch.randint(0, 10, ({rows} * {batch},))
loader = DataLoader(TensorDataset(X, Y), batch_size={batch}, shuffle=True)
model = nn.Sequential(nn.Linear({width}, {hidden}), nn.ReLU(), nn.Linear({hidden}, {hidden}), nn.ReLU(), nn.Linear({hidden}, 10))
opt = torch.optim.Adam(model.parameters(), lr=1e-3)
losses, correct, total = [], 0, 0
class Meter:
    def __init__(self):
        self.sum = self.count = self.avg = 0
    def update(self, value, n=1):
        self.sum += value * n
        self.count += n
        self.avg = self.sum / self.count
meter = Meter()
def step(x, y):
    opt.zero_grad()
    out = model(x)
    loss = F.cross_entropy(out, y)
    loss.backward()
    opt.step()
    return out, loss
"""

BODIES = {
    "tutorial": """
running = 0.0
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    running += loss.item()
    if i % 100 == 99:
        print(f"{i} {running / 100:.3f}")
        running = 0.0
""",
    "accuracy": """
for i, (x, y) in enumerate(loader):
    out = model(x)
    loss = F.cross_entropy(out, y)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    losses.append(loss.item())
    _, predicted = out.max(1)
    total += y.size(0)
    correct += predicted.eq(y).sum().item()
    if i % 50 == 0:
        print(i, sum(losses) / len(losses), 100 * correct / total)
""",
    "helpers": """
for x, y in loader:
    out, loss = step(x, y)
    meter.update(loss.item(), x.size(0))
""",
}


class OneWorker:
    """A hub in this process that gives every unit to one worker half, and times it."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.record_s = self.replay_s = self.prepared_s = 0.0
        self.iterations = self.turns = 0
        self._asked = 0.0
        self.begun = time.process_time()

    def choose(self, entering: Any) -> StrategyConfig:
        return StrategyConfig()

    def planned(self, entering: Any, strategy: Any, shipment: Any, probe: Any, state: State) -> None:
        self.probe_s = time.process_time() - self.shipped

    def admit(self, shipment: Any) -> bool:
        self.shipped = time.process_time()
        self.prepared_s = self.shipped - self.begun
        return False

    def open(self, shipment: Any, spec: EntrySpec, state: State) -> int:
        self.spec, self.half = spec, WorkerHalf(shipment.program, shipment.blobs.__getitem__)
        self.half.load(State.from_bytes(state.to_bytes()))
        return 1 << 20

    def feed(self, units: list[Unit], *, closed: bool) -> int:
        self.units += units
        return 0

    def results(self) -> Results:
        """All iterations but the last, then the last one, which brings the names left behind: replaying the first part is what is timed."""
        start = time.process_time()
        if self.iterations:
            self.replay_s = start - self._asked
        units, self.units = (self.units[:-1], self.units[-1:]) if not self.iterations else (self.units, [])
        outcome = self.half.run(Lease("l", "r", 0, 0, tuple(units), final=not self.units), self.spec)
        self._asked = time.process_time()
        self.record_s += self._asked - start
        self.iterations, self.turns = self.iterations + len(units), self.half.recorder.turn
        return Results((Part(units[0].index, tuple(outcome.logs), outcome.left, outcome.exit),))

    def newest(self) -> State:
        return self.half.state()

    def close(self, reason: str) -> State:
        return self.half.state()


def namespace(text: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "__main__"}
    linecache.cache["<setup>"] = (len(text), None, text.splitlines(keepends=True), "<setup>")
    exec(compile(text, "<setup>", "exec"), space)
    return space


def plain(setup: str, body: str) -> float:
    space, code = namespace(setup), compile(body, "<cell>", "exec")
    start = time.process_time()
    exec(code, space)
    return time.process_time() - start


def leased(setup: str, body: str) -> OneWorker:
    space, hub = namespace(setup), None
    linecache.cache["<cell>"] = (len(body), None, body.splitlines(keepends=True), "<cell>")
    hub = OneWorker()
    LeasedCell(body, space, "<cell>").run(hub, lambda tree: exec(compile(tree, "<cell>", "exec"), space))
    return hub


def measure(name: str, setup: str, repeats: int) -> list[str]:
    """One row of the table: best times of `repeats` turns of each."""
    plain_s = float("inf")
    hubs: list[OneWorker] = []
    for _ in range(repeats):
        with contextlib.redirect_stdout(io.StringIO()):
            plain_s = min(plain_s, plain(setup, BODIES[name]))
            hubs.append(leased(setup, BODIES[name]))
    n, turns = hubs[0].iterations, hubs[0].turns
    record_s, replay_s = min(h.record_s for h in hubs), min(h.replay_s for h in hubs)
    prepared_s = min(h.prepared_s for h in hubs)
    over_s = record_s - plain_s
    return [
        name,
        f"{1e3 * plain_s / n:.3f}",
        f"{1e3 * record_s / n:.3f}",
        f"{100 * over_s / plain_s:+.1f} %",
        f"{1e6 * over_s / n / max(1, turns):.1f}",
        f"{1e6 * replay_s / n:.1f}",
        f"{1e3 * prepared_s:.1f}",
    ]


def through_hub(setup: str, iterations: int, repeats: int) -> None:
    """The tutorial's loop by the clock: here, and on one worker of a real hub."""
    from depin_nb import wiring
    from depin_nb.session import TrainOptions

    def there() -> float:
        space = namespace(setup)
        start = time.perf_counter()
        session.train_cell(
            BODIES["tutorial"], space, shell=None, options=TrainOptions(strategy="local", workers=1), on_status=lambda status: None
        )
        return time.perf_counter() - start

    def here() -> float:
        space, code = namespace(setup), compile(BODIES["tutorial"], "<cell>", "exec")
        start = time.perf_counter()
        exec(code, space)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory(prefix="depin-bench-") as home:
        os.environ["DEPIN_HOME"] = home
        session = wiring.connect("local", workers=1)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                there()  # the worker imports torch
                times = [(here(), there()) for _ in range(repeats)]
        finally:
            wiring.down()
    plain_s, hub_s = min(a for a, _ in times), min(b for _, b in times)
    print(f"{iterations} iterations, one thread, best of {repeats}; by the clock")
    each_ms, over = 1e3 * plain_s / iterations, 100 * (hub_s / plain_s - 1)
    print(f"here {plain_s:.2f} s ({each_ms:.1f} ms an iteration), one worker `local` {hub_s:.2f} s: {over:+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60, help="iterations a loop (default 60)")
    parser.add_argument("--batch", type=int, default=256, help="samples an iteration")
    parser.add_argument("--width", type=int, default=256, help="inputs of the model")
    parser.add_argument("--hidden", type=int, default=768, help="units of its layers: 768 takes about 20 ms an iteration on one core")
    parser.add_argument("--repeats", type=int, default=4, help="turns of each kind; the best counts")
    parser.add_argument("--hub", action="store_true", help="time the whole of a run on one worker of a real hub instead")
    parser.add_argument("--only", choices=[*BODIES], help="one body only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setup = SETUP
    for key, value in {"rows": args.iterations, "batch": args.batch, "width": args.width, "hidden": args.hidden}.items():
        setup = setup.replace("{" + key + "}", str(value))
    if args.hub:
        through_hub(setup, args.iterations, args.repeats)
        return
    head = ["body", "plain ms", "worker ms", "overhead", "us/evaluation", "replay us", "find+analyse+ship ms"]
    print(f"{args.iterations} iterations, batch {args.batch}, one thread, best of {args.repeats}; CPU time an iteration")
    print("  ".join(f"{h:>13}" for h in head))
    for name in [args.only] if args.only else BODIES:
        print("  ".join(f"{cell:>13}" for cell in measure(name, setup, args.repeats)))


if __name__ == "__main__":
    main()
