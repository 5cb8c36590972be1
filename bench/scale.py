"""What a merge costs the hub with 10, 100 and 1,000 workers: processor time, memory, and how long a merge and a heartbeat wait.

The real coordinator, journal and embedded chain in one process (one for each number of workers, so that the memory is its own); the
workers are *simulated* inside it: each takes its lease, fetches the version (whole at first, then steps of 4 bits), and hands in a change
of the given size that was encoded beforehand, so that nearly all time is the hub's (what the workers themselves take is measured and left
out). The network is left out too: no RPC, no sockets. A merge of all is a lease of each worker: where merges take fewer leases, their
costs are added up.
Goals: under 1 s of processor time a merge at 1,000 workers with changes of 100 kB; the cost of a worker flat or falling.
Run: python bench/scale.py [--quick]; --profile N shows where the time goes at N workers.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from common.fleet import state_folder
from common.measure import Goal, median, parser, report, say

BYTES_A_VALUE = 0.516  # of a 4-bit change (docs/training.md)
TICK_S, BEAT_S = 0.25, 0.02
GOAL_CPU_S = 1.0


class Crowd:
    """Workers that hand in one ready-made change for each lease. `own_cpu_s`: what they themselves cost."""

    def __init__(self, coordinator: Any, change: bytes, count: int) -> None:
        self.coordinator, self.change = coordinator, change
        self.addresses = [f"tcp://worker-{i}" for i in range(count)]
        self.own_cpu_s = 0.0
        self.last_report_s = 0.0
        self.asked: set[str] = set()  # those that have asked for a lease
        self.accepted = 0
        self.refused: list[str] = []

    def join(self) -> None:
        from depin_nb.ledger.wallet import Wallet

        for i, address in enumerate(self.addresses):
            facts = {"name": f"worker-{i}", "speed": 1.0, "simulated": True, "backend": "depin"}
            self.coordinator.workers.join(address, "phone", Wallet.new(address).address, facts)

    async def work(self, address: str) -> None:
        from depin_nb.core.codec import encode
        from depin_nb.core.lease import Lease, Report

        ops = self.coordinator.workers
        have: dict[str, Any] | None = None
        while True:
            self.asked.add(address)
            answer = await ops.lease(address, 30)
            if "leave" in answer:
                return
            if "wait" in answer:
                continue
            lease = Lease.from_dict(answer["lease"])
            if have is None or have["version"] != lease.base_version:
                got = await ops.version(address, lease.run_id, lease.base_version, have)
                have = {"version": got["version"], "digest": got.get("digest", b"")}
            start = time.thread_time()
            logs = tuple(encode([1, [[0, 1, 0, 0.5]]]) for _ in lease.units)
            losses = tuple((unit.index, 0.5) for unit in lease.units)
            data = Report(lease.lease_id, len(lease.units), logs, self.change, b"", "", losses, 0.1).to_dict()
            self.own_cpu_s += time.thread_time() - start
            self.last_report_s = time.monotonic()
            said = await ops.report(address, data)
            self.accepted += said["accepted"]
            if not said["accepted"]:
                self.refused.append(said["reason"])


async def measured(workers: int, merges: int, change_bytes: int, coordinator: Any) -> dict[str, float]:
    """The figures of `merges` merges, the first left out."""
    from depin_nb.core.lease import EntrySpec, StrategyConfig
    from depin_nb.core.state import PARAM, State
    from depin_nb.training.compress import encode_change

    values = max(1024, int(change_bytes / BYTES_A_VALUE) // 4)
    base = State({f"model/w{i}": torch.zeros(values) for i in range(4)}, dict.fromkeys((f"model/w{i}" for i in range(4)), PARAM))
    torch.manual_seed(0)
    change, _ = encode_change(
        base, State({n: torch.randn(values) * 1e-3 for n in base.tensors}, dict(base.kinds)), bits=4, include_inner=False
    )
    crowd = Crowd(coordinator, change, workers)
    crowd.join()
    idle_bytes = rss_bytes()
    ops = coordinator.kernel
    run = (await ops.run_start("scale", "", "local", None, "depin", ""))["run_id"]
    strategy = StrategyConfig(name="local", solo=False, inner_steps=1, bits=4, down_bits=4)
    total = workers * (merges + 1)
    spec = EntrySpec(coordinator.blobs.put(b"program"), (), strategy, total, 7, 10**9, 0.1, 1 << 20, 2, 0)
    tasks = [asyncio.create_task(crowd.work(address)) for address in crowd.addresses]
    while len(crowd.asked) < workers:  # all wait for the first lease
        await asyncio.sleep(0)
    entry = (await ops.entry_open(run, spec.to_dict(), base.to_bytes()))["entry"]
    lags: list[float] = []
    tasks += [asyncio.create_task(beat(coordinator, crowd.addresses[0], lags)), asyncio.create_task(ticking(coordinator))]
    marks: list[tuple[float, float, float, int, int]] = []  # wall, processor and the workers' own seconds; merges, leases accepted
    waits: list[float] = []
    fed = got = 0
    want = ops.units(run, entry, [], False)["want"]
    while got < total:
        if want > 0 and fed < total:
            count = min(want, total - fed)
            ops.units(run, entry, [(i, b"x" * 64, 2) for i in range(fed, fed + count)], fed + count == total)
            fed += count
        answer = await ops.results(run, entry, got, 20)
        if answer["state"] != "running":
            raise RuntimeError(f"the run came to {answer['state']}: {answer['error']} {crowd.refused[:3]}")
        if answer["leases"]:
            got += sum(len(lease["logs"]) for lease in answer["leases"])
            waits.append(time.monotonic() - crowd.last_report_s)
            marks.append((time.monotonic(), time.process_time(), crowd.own_cpu_s, coordinator.runs[run].merges, crowd.accepted))
            say(f"{workers} workers: {got} of {total} iterations in {marks[-1][3]} merges")
        want = answer["want"]
    await ops.entry_close(run, entry, "done")
    wall_s, cpu_s, own_s, done, leases = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    await ops.run_finish(run, "finished", "")
    return {
        "workers": workers,
        "merges": done,
        "change_bytes": len(change),
        "lease_cpu_s": (cpu_s - own_s) / leases,
        "lease_wall_s": wall_s / leases,
        "wait_s": median(waits[1:]),
        "beat_p95_s": sorted(lags)[int(0.95 * (len(lags) - 1))],
        "beat_max_s": max(lags),
        "idle_bytes": idle_bytes,
        "peak_bytes": peak,
        "model_bytes": base.nbytes(),
        "leases_a_merge": leases / done,
    }


async def beat(coordinator: Any, address: str, lags: list[float]) -> None:
    """A heartbeat every BEAT_S, and how much later than that it got its answer."""
    while True:
        start = time.monotonic()
        await asyncio.sleep(BEAT_S)
        coordinator.workers.alive(address, "")
        lags.append(max(0.0, time.monotonic() - start - BEAT_S))


async def ticking(coordinator: Any) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        coordinator.tick()


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(workers: int, merges: int, change_bytes: int, profiles: list[cProfile.Profile] | None = None) -> dict[str, float]:
    """The measurement in this process. `profiles`: gets one profile for each thread."""
    torch.set_num_threads(1)
    with state_folder() as home:
        from depin_nb.hub.build import build

        parts = build(home)
        if profiles is not None:

            def watched() -> None:
                profile = cProfile.Profile(time.thread_time)
                profiles.append(profile)
                profile.enable()

            parts.executor = parts.coordinator.executor = ThreadPoolExecutor(2, initializer=watched)

        async def main() -> dict[str, float]:
            try:
                return await measured(workers, merges, change_bytes, parts.coordinator)
            finally:
                await parts.coordinator.close()

        try:
            if profiles is None:
                return asyncio.run(main())
            profiles.append(cProfile.Profile(time.thread_time))
            return profiles[0].runcall(asyncio.run, main())
        finally:
            parts.close()


def in_child(workers: int, args: argparse.Namespace) -> dict[str, float]:
    argv = [sys.executable, __file__, "--child", str(workers), "--merges", str(args.merges), "--change-kb", str(args.change_kb)]
    return json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000], help="numbers of workers")
    options.add_argument("--merges", type=int, default=5, help="merges measured, after one that isn't (default 5)")
    options.add_argument("--change-kb", type=float, default=100.0, help="kB of a change (default 100)")
    options.add_argument("--profile", type=int, metavar="N", help="profile N workers by processor time instead")
    options.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.merges, int(1e3 * args.change_kb))))
        return 0
    if args.quick:
        args.workers, args.merges, args.repeats = [4, 12], 2, 1
    if args.profile:
        profiles: list[cProfile.Profile] = []
        child(args.profile, args.merges, int(1e3 * args.change_kb), profiles)
        stats = pstats.Stats(profiles[0])
        for profile in profiles[1:]:
            profile.disable()
            stats.add(profile)
        stats.sort_stats("tottime").print_stats(30)
        stats.sort_stats("cumtime").print_stats("depin_nb", 30)
        return 0
    found = {n: [] for n in args.workers}
    for turn in range(args.repeats):
        for n in args.workers:
            found[n].append(in_child(n, args))
            say(f"turn {turn + 1} of {args.repeats}: {n} workers, {1e6 * found[n][-1]['lease_cpu_s']:.0f} us of processor time a lease")
    each = {n: {key: median([f[key] for f in runs]) for key in runs[0]} for n, runs in found.items()}
    rows = [
        [
            f"{n:,}",
            f"{f['leases_a_merge']:.0f}",
            f"{1e6 * f['lease_cpu_s']:.0f}",
            f"{1e3 * f['lease_cpu_s'] * n:.1f}",
            f"{1e3 * f['lease_wall_s'] * n:.0f}",
            f"{1e3 * f['wait_s']:.0f}",
            f"{1e3 * f['beat_p95_s']:.1f} / {1e3 * f['beat_max_s']:.0f}",
            f"{(f['peak_bytes'] - f['idle_bytes']) / 1e6:.0f}",
            f"{(f['peak_bytes'] - f['idle_bytes']) / f['model_bytes']:.1f}",
        ]
        for n, f in each.items()
    ]
    most, least = max(each), min(each)
    growth = each[most]["lease_cpu_s"] / each[least]["lease_cpu_s"]
    goals = [
        Goal(f"processor time a merge at {most:,} workers", most * each[most]["lease_cpu_s"], GOAL_CPU_S, "{:.2f} s", True),
        Goal(f"processor time a worker, {most:,} against {least:,}", growth, 1.0, "{:.2f} x", True),
    ]
    head = ["workers", "leases a merge", "CPU us a worker", "CPU ms for all", "wall ms for all", "ms last report to result"]
    head += ["heartbeat waits ms p95 / max", "MB above idle", "x model"]
    sizes = f"changes of {each[most]['change_bytes'] / 1e3:.0f} kB, model of {each[most]['model_bytes'] / 1e6:.1f} MB, without the network"
    return report(head, rows, goals, quick=args.quick, notes=[sizes])


if __name__ == "__main__":
    sys.exit(main())
