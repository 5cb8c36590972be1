"""How fast workers are paid: `python bench/ledger.py [workers]` opens, receipts, settles and verifies a run on the embedded chain."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from depin_nb.ledger import store
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.ledger.ledger import Ledger
from depin_nb.ledger.receipt import Receipt
from depin_nb.ledger.verify import verify_run
from depin_nb.ledger.wallet import Wallet, Wallets

RECEIPTS_EACH = 5


def measure(workers: int, folder: Path) -> dict[str, float | int | bool]:
    """Seconds and rates of each step, with `workers` wallets that were never paid before."""
    wallets = Wallets(folder / "wallets")
    chain = EmbeddedChain(folder / "chain.sqlite", wallets)
    ledger = Ledger(lambda: store.connect(folder / "journal.sqlite"), chain, wallets)
    conn = store.connect(folder / "journal.sqlite")
    addresses = [Wallet.new().address for _ in range(workers)]

    started = time.perf_counter()
    ledger.open_run("run-bench", 10**12)
    opened_s = time.perf_counter() - started

    count = workers * RECEIPTS_EACH
    started = time.perf_counter()
    with store.transaction(conn):
        for n in range(count):
            who = n % workers
            receipt = Receipt("run-bench", f"lease-{n}", f"w{who}", addresses[who], 0, n, 1, 32, 10**9, 1_000 + n, n, n)
            ledger.record(conn, receipt)
    receipts_s = time.perf_counter() - started

    started = time.perf_counter()
    result = ledger.settle("run-bench")
    settle_s = time.perf_counter() - started

    started = time.perf_counter()
    report = verify_run("run-bench", conn, chain)
    verify_s = time.perf_counter() - started

    started = time.perf_counter()
    reader = EmbeddedChain(folder / "chain.sqlite")
    replay_s = time.perf_counter() - started
    for part in (reader, chain, ledger, conn):
        part.close()
    return {
        "workers": workers,
        "receipts": count,
        "transactions": len(result.signatures),
        "open_s": round(opened_s, 4),
        "receipts_per_s": round(count / receipts_s),
        "settle_s": round(settle_s, 3),
        "payouts_per_s": round(workers / settle_s),
        "verify_s": round(verify_s, 3),
        "replay_s": round(replay_s, 3),
        "verified": report.ok,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", nargs="?", type=int, default=1_000)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(parser.parse_args().workers, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
