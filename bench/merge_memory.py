"""The memory that a hub takes to merge 4, 16 and 64 changes of one model, above what it takes idle.

The real coordinator, journal and embedded chain in a process of its own for each number of workers; the workers are *simulated* inside it
and hand in one change after the other, encoded beforehand in another process; the network is left out. What is measured is the process's
resident memory from the opening of the entry to the last merge, at most: with the pages of files (mapped versions, and code that was not
used before), and without them. `--bits 32` sends whole values, which is the most that a change can be.
Goal: under 3 times the model, for any number of workers.
Run: python bench/merge_memory.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from common.fleet import state_folder
from common.measure import Goal, median, parser, report, say

SLOTS = 8  # tensors of the model, all of one size
SAMPLE_S = 0.001
GOAL = 3.0


class Watch(threading.Thread):
    """Looks at the process's memory all the time. `peak`: (resident bytes, those that are its own) at most, each by itself."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = (0, 0)
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(SAMPLE_S):
            self.peak = tuple(map(max, self.peak, memory()))  # type: ignore[assignment]


def memory() -> tuple[int, int]:
    """(resident bytes, those that aren't pages of files)"""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            found[name] = int(rest.split()[0]) << 10
    return found["VmRSS"], found["RssAnon"]


def state_of(values: int, seed: int) -> Any:
    from depin_nb.core.state import PARAM, State

    generator = torch.Generator().manual_seed(seed)
    names = [f"model/w{i}" for i in range(SLOTS)]
    return State({n: torch.randn(values, generator=generator) for n in names}, dict.fromkeys(names, PARAM))


def prepare(folder: Path, model_bytes: int, bits: int) -> None:
    """The model and one change of it, as files: what made them is not the hub's memory."""
    from depin_nb.training.compress import encode_change

    base, new = (state_of(model_bytes // 4 // SLOTS, seed) for seed in (0, 1))
    change, _ = encode_change(base, new, bits=bits, include_inner=bits == 32)
    (folder / "model").write_bytes(base.to_bytes())
    (folder / "change").write_bytes(change)


async def worker(coordinator: Any, address: str, change: Path, at_once: asyncio.Lock) -> None:
    from depin_nb.core.codec import encode
    from depin_nb.core.lease import Lease, Report

    ops, have = coordinator.workers, None
    while True:
        answer = await ops.lease(address, 30)
        if "leave" in answer:
            return
        if "wait" in answer:
            continue
        lease = Lease.from_dict(answer["lease"])
        async with at_once:  # the first version is large, and nothing holds it back here as the network does
            if have is None or have["version"] != lease.base_version:
                got = await ops.version(address, lease.run_id, lease.base_version, have)
                have = {"version": got["version"], "digest": got.get("digest", b"")}
                del got
        async with at_once:
            logs = tuple(encode([1, [[0, 1, 0, 0.5]]]) for _ in lease.units)
            said = Report(lease.lease_id, len(lease.units), logs, change.read_bytes(), b"", "", ((lease.first, 0.5),), 0.1).to_dict()
            await ops.report(address, said)
            del said


async def merged(coordinator: Any, folder: Path, workers: int, merges: int, bits: int) -> dict[str, float]:
    from depin_nb.core.lease import EntrySpec, StrategyConfig
    from depin_nb.ledger.wallet import Wallet

    addresses = [f"tcp://worker-{i}" for i in range(workers)]
    for i, address in enumerate(addresses):
        facts = {"name": f"worker-{i}", "speed": 1.0, "simulated": True, "backend": "depin"}
        coordinator.workers.join(address, "phone", Wallet.new(address).address, facts)
    ops = coordinator.kernel
    run = (await ops.run_start("memory", "", "local", None, "depin", ""))["run_id"]
    down_bits = {2: 4, 4: 4, 8: 8, 32: 32}[bits]
    strategy = StrategyConfig(name="local", solo=False, inner_steps=1, bits=bits, outer_momentum=0.3, down_bits=down_bits)
    total = workers * merges
    spec = EntrySpec(coordinator.blobs.put(b"program"), (), strategy, total, 7, 10**9, 0.1, 1 << 20, 2, 0)
    lock = asyncio.Lock()
    tasks = [asyncio.create_task(worker(coordinator, address, folder / "change", lock)) for address in addresses]
    idle, watch = memory(), Watch()
    watch.start()
    entry = (await ops.entry_open(run, spec.to_dict(), (folder / "model").read_bytes()))["entry"]
    ops.units(run, entry, [(i, b"x" * 64, 2) for i in range(total)], True)
    got = 0
    while got < total:
        answer = await ops.results(run, entry, got, 20)
        if answer["state"] != "running":
            raise RuntimeError(f"the run came to {answer['state']}: {answer['error']}")
        got += sum(len(lease["logs"]) for lease in answer["leases"])
        coordinator.tick()
    watch.done.set()
    watch.join()
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    done = coordinator.runs[run].merges
    await ops.entry_close(run, entry, "done")
    await ops.run_finish(run, "finished", "")
    change_bytes = (folder / "change").stat().st_size
    return {"all": watch.peak[0] - idle[0], "own": watch.peak[1] - idle[1], "merges": done, "change_bytes": change_bytes}


def child(folder: Path, workers: int, merges: int, bits: int) -> dict[str, float]:
    torch.set_num_threads(1)
    with state_folder() as home:
        from depin_nb.hub.build import build

        parts = build(home)

        async def main() -> dict[str, float]:
            try:
                return await merged(parts.coordinator, folder, workers, merges, bits)
            finally:
                await parts.coordinator.close()

        try:
            return asyncio.run(main())
        finally:
            parts.close()


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--workers", type=int, nargs="+", default=[4, 16, 64], help="numbers of workers")
    options.add_argument("--merges", type=int, default=4, help="merges (default 4)")
    options.add_argument("--model-mb", type=float, default=40.0, help="MB of the model (default 40)")
    options.add_argument("--bits", type=int, default=4, choices=(2, 4, 8, 32), help="of a change's values (default 4)")
    options.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.quick:
        args.workers, args.merges, args.repeats, args.model_mb = [2, 4], 2, 1, 8.0
    model_bytes = int(1e6 * args.model_mb)
    if args.prepare:
        prepare(args.folder, model_bytes, args.bits)
        return 0
    if args.child:
        print(json.dumps(child(args.folder, args.child, args.merges, args.bits)))
        return 0
    found: dict[int, list[dict[str, float]]] = {n: [] for n in args.workers}
    with tempfile.TemporaryDirectory() as folder:
        same = [sys.executable, __file__, "--folder", folder, "--model-mb", str(args.model_mb), "--bits", str(args.bits)]
        subprocess.run([*same, "--prepare"], check=True)
        for turn in range(args.repeats):
            for n in args.workers:
                argv = [*same, "--child", str(n), "--merges", str(args.merges)]
                found[n].append(json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True).stdout))
                say(f"turn {turn + 1} of {args.repeats}: {n} workers, {found[n][-1]['all'] / model_bytes:.2f} x the model")
    each = {n: {key: median([f[key] for f in runs]) for key in runs[0]} for n, runs in found.items()}
    rows = [
        [f"{n}", f"{f['merges']:.0f}", f"{f['all'] / 1e6:.0f}", f"{f['all'] / model_bytes:.2f}", f"{f['own'] / 1e6:.0f}"]
        for n, f in each.items()
    ]
    most = max(f["all"] for f in each.values()) / model_bytes
    goals = [Goal("resident memory above idle, times the model", most, GOAL, "{:.2f} x", True)]
    head = ["workers", "merges", "MB above idle at most", "x model", "MB without pages of files"]
    notes = [f"model of {args.model_mb:.0f} MB, changes of {args.bits} bits ({each[max(each)]['change_bytes'] / 1e6:.1f} MB)"]
    return report(head, rows, goals, quick=args.quick, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
