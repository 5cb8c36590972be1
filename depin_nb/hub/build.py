"""Puts a coordinator together from the real parts: journal, ledger on the embedded chain, price catalog, threads."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from depin_nb.hub.coordinator import Coordinator
from depin_nb.hub.records.journal import Journal

from ..core import config
from ..core.amount import Amount
from ..ledger import store
from ..ledger.embedded import EmbeddedChain
from ..ledger.ledger import Ledger
from ..ledger.wallet import Wallets
from ..metering import price
from ..ports import SystemClock

TENSOR_THREADS = 2
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 2 << 20


@dataclass
class Parts:
    """A coordinator and what has to be closed after it."""

    coordinator: Coordinator
    journal: Journal
    ledger: Ledger
    chain: EmbeddedChain
    executor: ThreadPoolExecutor
    books: ThreadPoolExecutor

    def close(self) -> None:
        """After `coordinator.close()`: waits for the threads, then closes the files."""
        self.executor.shutdown(wait=True)
        self.books.submit(self.ledger.close).result()
        self.books.shutdown(wait=True)
        self.chain.close()
        self.journal.close()


def return_large_blocks() -> None:
    """Has glibc give freed blocks of LARGE_BYTES and more back at once. By itself it keeps those of up to 32 MiB once such a one was freed
    (mallopt(3), M_MMAP_THRESHOLD), and a hub's memory would be what its worst moment took. Nothing where there is no glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def build(home: Path, user_budget: Amount | None = None) -> Parts:
    """Opens (or makes) the journal and the chain of this state folder. Raises JournalError, ChainError or WalletError."""
    return_large_blocks()
    journal = Journal(config.journal_file())
    wallets = Wallets()
    chain = EmbeddedChain(wallets=wallets)
    ledger = Ledger(partial(store.connect, config.journal_file()), chain, wallets)
    executor = ThreadPoolExecutor(TENSOR_THREADS, thread_name_prefix="tensors")
    books = ThreadPoolExecutor(1, thread_name_prefix="books")
    coordinator = Coordinator(
        home=home,
        clock=SystemClock(),
        journal=journal,
        ledger=ledger,
        prices=price.load(),
        executor=executor,
        books=books,
        user_budget=user_budget,
    )
    return Parts(coordinator, journal, ledger, chain, executor, books)
