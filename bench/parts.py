"""One payload over Dask's RPC on loopback, both ends in this process: as bytes in the message, and beside it (network/frames.py).

Milliseconds for one call, the median of `--repeats` in turns. Run: python bench/parts.py [--mib 8]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from statistics import median


async def measured(mib: int, repeats: int) -> dict[str, float]:
    from distributed.core import Server, rpc

    from depin_nb.network import frames

    frames.register()
    data = os.urandom(mib << 20)

    async def take(data: object = None) -> dict[str, object]:
        return {"taken": data is not None}

    async def give() -> dict[str, object]:
        return {"data": data}

    async def give_framed() -> dict[str, object]:
        return {"data": frames.framed(data)}

    server = Server({"take": take, "give": give, "give_framed": give_framed})
    await server.listen("tcp://127.0.0.1:0")
    remote = rpc(server.address)
    calls = {
        "up, in the message": lambda: remote.take(data=data),
        "up, beside it": lambda: remote.take(data=frames.framed(data)),
        "down, in the message": lambda: remote.give(),
        "down, beside it": lambda: remote.give_framed(),
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            await call()
            took[name].append(1e3 * (time.perf_counter() - begun))
    await remote.close_rpc()
    await server.close()
    return {name: median(values[1:]) for name, values in took.items()}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mib", type=int, default=8)
    options.add_argument("--repeats", type=int, default=20)
    said = options.parse_args()
    for name, value in asyncio.run(measured(said.mib, said.repeats)).items():
        print(f"{said.mib} MiB {name:22} {value:6.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
