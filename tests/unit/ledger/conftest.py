"""A ledger on a real embedded chain in a temporary folder, which can be killed at any point and opened again."""

from collections import Counter

import pytest

from depin_nb.ledger import store
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.ledger.ledger import Ledger
from depin_nb.ledger.receipt import Receipt
from depin_nb.ledger.vault import held_units, token_account
from depin_nb.ledger.wallet import Wallet, Wallets


class Killed(BaseException):
    """The hub dies here."""


class Bench:
    """Files of one hub; `open()` as a newly started process would."""

    def __init__(self, folder):
        self.folder = folder
        self.wallets = Wallets(folder / "wallets")
        self.chain = None
        self.ledger = None
        self.conn = None
        self.at = lambda point: None
        self.open()

    def open(self):
        """(Re)starts: nothing but the files is kept."""
        self.close()
        self.chain = EmbeddedChain(self.folder / "chain.sqlite", self.wallets)
        self.conn = store.connect(self.folder / "journal.sqlite")
        with store.transaction(self.conn):  # as the journal does
            store.create_tables(self.conn)
        journal = self.folder / "journal.sqlite"
        self.ledger = Ledger(lambda: store.connect(journal), self.chain, self.wallets, at=lambda point: self.at(point))

    def close(self):
        for part in (self.ledger, self.chain, self.conn):
            if part is not None:
                part.close()

    def record(self, *receipts):
        with store.transaction(self.conn):
            return [self.ledger.record(self.conn, receipt) for receipt in receipts][-1]

    def held(self, wallet):
        account = self.chain.account(token_account(wallet, self.chain.mint))
        return held_units(account) if account is not None else 0


def receipts(run_id, workers, each=2, units=1_000):
    """`each` receipts for each of `workers` new workers, in loop order; and what each wallet is owed."""
    wallets = [Wallet.new().address for _ in range(workers)]
    found = [
        Receipt(
            run_id=run_id,
            lease_id=f"lease-{n}",
            worker_id=f"w{n % workers}",
            wallet=wallets[n % workers],
            entry=0,
            first=4 * n,
            count=4,
            samples=128,
            flops=10**10 + n,
            units_dpn=units + n,
            version=n // workers,
            at_ms=1_000 + n,
        )
        for n in range(workers * each)
    ]
    owed = Counter()
    for receipt in found:
        owed[receipt.wallet] += receipt.units_dpn
    return found, owed


@pytest.fixture
def killed():
    """The exception that stands for the hub's death."""
    return Killed


@pytest.fixture(name="receipts")
def _receipts():
    return receipts


@pytest.fixture
def new_bench(tmp_path):
    """Makes benches in folders of their own."""
    made = []

    def make():
        folder = tmp_path / f"bench-{len(made)}"
        folder.mkdir()
        made.append(Bench(folder))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def bench(new_bench):
    return new_bench()
