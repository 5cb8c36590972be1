"""A soak: 1,000 faults in one run. SIGKILL, SIGSTOP and SIGCONT of workers, cut connections, SIGKILL of the hub; each at its iteration.

Prints what came, how soon a lost worker was replaced, and whether what is counted is exact. `python -m bench.soak --faults 1000 --seed 1`
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from depin_nb import wiring
from depin_nb.core import config
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.testing.promises import broken, merged_of_chain
from depin_nb.testing.storm import Storm, batches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--hub-kills", type=int, default=10, help="of them, SIGKILLs of the hub (default: 10)")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="depin-soak-") as folder:
        home, place = Path(folder) / "home", Path(folder) / "cell"
        home.mkdir()
        place.mkdir()
        os.environ["DEPIN_HOME"] = str(home)
        began_s = time.monotonic()
        try:
            storm = Storm(home, place, asked.seed, asked.faults, asked.hub_kills, asked.workers).run()
        finally:
            wiring.down()
        took_s = time.monotonic() - began_s
        total = batches(asked.faults)
        chain = EmbeddedChain(config.chain_file())
        wrong = broken(home, chain, counted=False)
        chain.close()
        once = merged_of_chain(home, storm.runs[-1]) == list(range(total)) == storm.namespace["seen"]
        left = [p.pid for p in psutil.process_iter() if p.pid != os.getpid() and _works_in(p, home)]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(storm.come.items()))
    joined = statistics.quantiles(storm.replaced_s, n=20) if len(storm.replaced_s) > 1 else [0.0] * 19
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{sum(storm.come.values())} faults ({kinds}) in {took_s:.0f} s, over {len(storm.runs)} runs of one cell")
    print(f"a lost worker's successor had joined after {joined[9]:.1f} s (median), {joined[18]:.1f} s (95th percentile)")
    print(f"{total} iterations, each in one merged lease and replayed once: {'yes' if once else 'NO'}")
    print(f"broken promises: {wrong or 'none'}; processes left: {left or 'none'}")
    return int(not once or bool(wrong) or bool(left))


def _works_in(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get("DEPIN_HOME") == str(home)
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main())
