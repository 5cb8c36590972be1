"""A round's changes at the hub, and by a tree: seconds from the first byte to the merged version, the hub's memory and processor time.

Real processes on loopback: a hub (a Dask scheduler with the plugin's operations for transfers and aggregation's own code) is left out;
what is measured is what differs. The hub's process takes N changes of the given size in parts, checks each, and merges them
(`flat`); or trusted workers, each a process, take and check them, and the hub takes and merges one sum of each (`tree`). Senders are
one process. In turns, the median of `--repeats`. On few cores the tree's work is the same machine's; with machines of their own the
hub's part alone remains, which is shown.
Run: python bench/tree.py [--mb 10] [--workers 16] [--aggregators 2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

VALUES_A_MB = 1e6 / 0.516  # of a 4-bit change
PART_BYTES = 4 << 20


def base_of(mb: float) -> Any:
    import torch

    from depin_nb.core.state import PARAM, State

    count = int(mb * VALUES_A_MB) // 4
    return State({f"w{i}": torch.zeros(count) for i in range(4)}, {f"w{i}": PARAM for i in range(4)})


def change_of(base: Any) -> bytes:
    import torch

    from depin_nb.core.state import State
    from depin_nb.training.compress import encode_change

    torch.manual_seed(0)
    new = State({name: torch.randn_like(t) * 1e-3 for name, t in base.tensors.items()}, dict(base.kinds))
    return encode_change(base, new, bits=4, include_inner=False)[0]


class Taker:
    """Takes changes in parts, checks them, and sums them up; in a process of its own."""

    def __init__(self, mb: float) -> None:
        self.base = base_of(mb)
        self.folder = Path(tempfile.mkdtemp(prefix="depin-tree-"))
        self.threads = ThreadPoolExecutor(1)
        self.sums: dict[str, bytes] = {}

    async def _run(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def put(self, lease: str, offset: int, data: Any) -> dict[str, Any]:
        from depin_nb.core import partly
        from depin_nb.network.frames import unframed

        return {"have": await self._run(partial(partly.append, self.folder / lease, offset, unframed(data), siblings="*", keep=1000))}

    def change(self, lease: str, about: dict[str, Any]) -> Any:
        from depin_nb.core import partly
        from depin_nb.core.parts import announced
        from depin_nb.training.compress import decode_change

        return decode_change(partly.whole(self.folder / lease, announced(about)), self.base, max_bytes=1 << 34)

    async def check(self, lease: str, about: dict[str, Any]) -> dict[str, Any]:
        await self._run(lambda: self.change(lease, about))
        return {}

    def contributions(self, leases: Any) -> list[Any]:
        from depin_nb.training.merge import Contribution

        return [Contribution(lease, 10, last, self.change(lease, about)) for lease, about, last in leases]

    async def sum(self, leases: Any) -> dict[str, Any]:
        from depin_nb.core.lease import StrategyConfig
        from depin_nb.training.tree import summed

        data = await self._run(lambda: summed(self.base, self.contributions(leases), StrategyConfig(name="local", solo=False)))
        digest = hashlib.sha256(data).hexdigest()
        self.sums = {digest: data}
        return {"digest": digest, "bytes": len(data)}

    async def part(self, digest: str, offset: int, want: int) -> dict[str, Any]:
        from depin_nb.network.frames import beside

        return beside({"data": memoryview(self.sums[digest])[offset : offset + want]})

    async def merge(self, leases: Any, sums: Any) -> dict[str, Any]:
        """The hub's part: its own changes and the aggregators' sums, into the next version."""
        from distributed.core import rpc

        from depin_nb.core.lease import StrategyConfig
        from depin_nb.training.compress import decode_change
        from depin_nb.training.merge import Contribution, merge

        parts = []
        for address, said in sums:
            remote, data = rpc(address), bytearray()
            while len(data) < said["bytes"]:
                data += (await remote.part(digest=said["digest"], offset=len(data), want=PART_BYTES))["data"]
            await remote.close_rpc()
            parts.append(Contribution(address, 10, len(parts), await self._run(partial(decode_change, data, self.base, max_bytes=1 << 34))))

        def add() -> int:
            state, _ = merge(self.base, [*self.contributions(leases), *parts], StrategyConfig(name="local", solo=False))
            return len(state.to_bytes())

        return {"bytes": await self._run(add)}

    async def used(self) -> dict[str, float]:
        peak = float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        return {"cpu_s": time.process_time(), "peak_mb": peak / 1e3}


def serve(mb: float, addresses: Any) -> None:
    asyncio.run(_serve(mb, addresses))


async def _serve(mb: float, addresses: Any) -> None:
    import torch
    from distributed.core import Server

    from depin_nb.network import frames

    torch.set_num_threads(1)
    frames.register()
    taker = Taker(mb)
    server = Server({name: getattr(taker, name) for name in ("put", "check", "sum", "part", "merge", "used")})
    await server.listen("tcp://127.0.0.1:0")
    addresses.put(server.address)
    await asyncio.Event().wait()


async def handed_in(remote: Any, lease: str, change: bytes, about: dict[str, Any]) -> None:
    from depin_nb.network.frames import framed

    at, view = 0, memoryview(change)
    while at < len(change):
        at = (await remote.put(lease=lease, offset=at, data=framed(view[at : at + PART_BYTES])))["have"]
    await remote.check(lease=lease, about=about)


async def round_of(hub: str, takers: list[str], workers: int, change: bytes, number: int) -> dict[str, float]:
    """One round: by the hub alone where `takers` is empty."""
    from distributed.core import rpc

    about = {"digest": hashlib.sha256(change).hexdigest(), "bytes": len(change)}
    leases = [(f"{number}-{i}", about, i) for i in range(workers)]
    to = takers or [hub]
    groups = [leases[i * workers // len(to) : (i + 1) * workers // len(to)] for i in range(len(to))]
    remotes = [rpc(address) for address in to]
    head = rpc(hub)
    before, begun = await head.used(), time.perf_counter()
    work = [handed_in(remote, lease, change, about) for remote, group in zip(remotes, groups, strict=True) for lease, *_ in group]
    await asyncio.gather(*work)
    sums = []
    if takers:
        said = await asyncio.gather(*(remote.sum(leases=group) for remote, group in zip(remotes, groups, strict=True)))
        sums = list(zip(to, said, strict=True))
    await head.merge(leases=[] if takers else leases, sums=sums)
    took_s, after = time.perf_counter() - begun, await head.used()
    for remote in (*remotes, head):
        await remote.close_rpc()
    return {"took_s": took_s, "hub_cpu_s": after["cpu_s"] - before["cpu_s"], "hub_peak_mb": after["peak_mb"]}


async def measured(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    from depin_nb.network import frames

    frames.register()
    context = multiprocessing.get_context("spawn")
    addresses = context.Queue()
    count = 2 + options.aggregators  # a hub for each way, so that each has its own memory
    processes = [context.Process(target=serve, args=(options.mb, addresses), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        flat, tree, *takers = [addresses.get() for _ in processes]
        change = change_of(base_of(options.mb))
        found: dict[str, list[dict[str, float]]] = {"flat": [], "tree": []}
        for number in range(options.repeats):
            found["flat"].append(await round_of(flat, [], options.workers, change, number))
            found["tree"].append(await round_of(tree, takers, options.workers, change, number))
        return found
    finally:
        for process in processes:
            process.terminate()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mb", type=float, default=10.0, help="of one change, in 4 bits (default 10)")
    options.add_argument("--workers", type=int, default=16)
    options.add_argument("--aggregators", type=int, default=2)
    options.add_argument("--repeats", type=int, default=3)
    said = options.parse_args()
    found = asyncio.run(measured(said))
    print(f"{said.workers} changes of {said.mb:g} MB, {said.aggregators} aggregators")
    for name, rounds in found.items():
        values = {key: median(each[key] for each in rounds) for key in rounds[0]}
        print(f"{name:5} {values['took_s']:6.2f} s a round; hub {values['hub_cpu_s']:6.2f} s CPU, peak {values['hub_peak_mb']:6.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
