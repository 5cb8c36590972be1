"""The hub's ledger: opens a run's vault, writes receipts and vouchers as leases are accepted, and settles at the end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from depin_nb.core.errors import MoneyError, NoSuchRun, SettlementError, WalletError

from . import store
from .chain import LedgerChain
from .receipt import Frontier, Receipt, leaf_hash, merkle_root
from .settlement import Courier, SettlementResult
from .vault import Vault, vault_address
from .voucher import Voucher
from .wallet import Wallet, Wallets, is_address

OPEN_BUDGET_UNITS = 10**6 * 10**6  # 1,000,000 DPN: what the vault of a run without a budget is funded with at first; more is added when due


class Ledger:
    """Money of all runs of one hub. One thread at a time; `record` takes the caller's connection and transaction, all else its own.

    `connect`: opens the ledger's own connection to the journal's database (`store.connect(path)`), when first needed. Never call
    `open_run`, `raise_budget`, `settle` or `resume` from within a transaction of another connection: they write, and would wait for it.
    `at(point)`: for fault tests, called wherever a crash could happen.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        chain: LedgerChain,
        wallets: Wallets,
        *,
        at: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._connect = connect
        self._chain = chain
        self._wallets = wallets
        self._at = at
        self._own: sqlite3.Connection | None = None
        self._sessions: dict[str, Wallet] = {}

    @property
    def chain_name(self) -> str:
        """For people, with the word *simulated* where it is."""
        return self._chain.name

    @property
    def simulated(self) -> bool:
        return self._chain.simulated

    def close(self) -> None:
        """Closes the ledger's own connection. What it wrote is on disk."""
        if self._own is not None:
            self._own.close()
            self._own = None

    # --- a run's life -------------------------------------------------------------------------------

    def open_run(self, run_id: str, budget_dpn_units: int | None) -> str:
        """Creates and funds the run's vault; returns the transaction's signature. None = no budget: 1,000 DPN at first.

        Calling it again for the same run has no further effect. Raises ChainError when the user can't fund it.
        """
        units = OPEN_BUDGET_UNITS if budget_dpn_units is None else budget_dpn_units
        if units < 0:
            raise MoneyError("a run's budget can't be negative")
        conn = self._conn()
        with store.transaction(conn):
            if store.run(conn, run_id) is None:
                user, session = self._wallets.user().address, self._session(run_id).address
                capped = budget_dpn_units is not None
                store.add_run(conn, store.RunRow(run_id, user, session, self._chain.mint, units, capped, store.OPENING, None, 0))
        self._at("open: written")
        return self._open(self._row(run_id))

    def raise_budget(self, run_id: str, budget_dpn_units: int) -> str | None:
        """Funds the run's vault up to a new, higher budget; returns the signature, None when it is no higher than before."""
        row = self._row(run_id)
        if row.state not in (store.OPENING, store.OPEN):
            raise SettlementError(f"run {run_id} is settled, or being so", run_id=run_id)
        self._open(row)
        with store.transaction(self._conn()):
            store.set_capped(self._conn(), run_id)
        return self._fund(run_id, budget_dpn_units)

    def record(self, conn: sqlite3.Connection, receipt: Receipt) -> Voucher:
        """Adds an accepted lease's receipt and returns its worker's new voucher; both become true when the caller commits `conn`.

        A receipt that is there already changes nothing. Raises SettlementError when the run is unknown or no longer open, or the
        lease has a different receipt; WalletError when the receipt's wallet isn't an address.
        """
        row = store.run(conn, receipt.run_id)
        if row is None or row.state not in (store.OPENING, store.OPEN):
            raise SettlementError(f"run {receipt.run_id} takes no receipts: {row.state if row else 'not opened'}", run_id=receipt.run_id)
        if not is_address(receipt.wallet):
            raise WalletError(f"{receipt.wallet!r} is not a wallet's address")
        known = store.voucher(conn, receipt.run_id, receipt.worker_id, receipt.wallet)
        if not store.add_receipt(conn, receipt) and known is not None:
            return known[0]
        units, sequence, frontier = (known[0].units, known[0].sequence, known[1]) if known is not None else (0, 0, Frontier())
        frontier = frontier.add(receipt.leaf())
        voucher = Voucher(
            receipt.run_id, receipt.worker_id, receipt.wallet, units + receipt.units_dpn, sequence + 1, frontier.root()
        ).signed(self._session(receipt.run_id))
        store.put_voucher(conn, voucher, frontier)
        return voucher

    def settle(self, run_id: str) -> SettlementResult:
        """Pays every worker its voucher, gives the rest back, closes the vault. Returns the same again for a settled run.

        Raises SettlementError or ChainError when the chain doesn't take it now; calling again, also after a crash, goes on where it was.
        """
        row = self._row(run_id)
        if row.state == store.SETTLED:
            return self._result(row)
        self._open(row)
        conn = self._conn()
        with store.transaction(conn):
            if self._row(run_id).state != store.SETTLING:
                self._plan(run_id)
        self._at("planned")
        row = self._row(run_id)
        self._cover(row)
        courier = self._courier(row)
        assert row.root is not None
        courier.pay(row.root)
        courier.close(row.root)
        with store.transaction(conn):
            store.set_state(conn, run_id, store.SETTLED)
        self._at("settled")
        return self._result(self._row(run_id))

    def resume(self) -> dict[str, SettlementResult | MoneyError]:
        """Finishes the settlements that a killed hub had begun; a run's error, if it fails again, stands in its place."""
        found: dict[str, SettlementResult | MoneyError] = {}
        for run_id in store.runs_in(self._conn(), store.SETTLING):
            try:
                found[run_id] = self.settle(run_id)
            except MoneyError as error:
                found[run_id] = error
        return found

    # --- questions ----------------------------------------------------------------------------------

    def unsettled(self) -> list[str]:
        """The runs that were opened and not settled, oldest first; those of a killed hub among them."""
        return store.runs_in(self._conn(), store.OPENING, store.OPEN, store.SETTLING)

    def accrued(self, run_id: str) -> dict[str, int]:
        """DPN base units owed to each worker by its committed vouchers."""
        found: dict[str, int] = {}
        for voucher in store.vouchers(self._conn(), run_id):
            found[voucher.worker_id] = found.get(voucher.worker_id, 0) + voucher.units
        return found

    def result(self, run_id: str) -> SettlementResult | None:
        """The settlement of a settled run, None before."""
        row = store.run(self._conn(), run_id)
        return self._result(row) if row is not None and row.state == store.SETTLED else None

    def vault(self, run_id: str) -> str:
        """The address of the run's vault."""
        row = self._row(run_id)
        return vault_address(row.user, run_id)

    # --- inside -------------------------------------------------------------------------------------

    def _conn(self) -> sqlite3.Connection:
        if self._own is None:
            self._own = self._connect()
            with store.transaction(self._own):
                store.create_tables(self._own)
        return self._own

    def _row(self, run_id: str) -> store.RunRow:
        row = store.run(self._conn(), run_id)
        if row is None:
            raise NoSuchRun(f"the ledger has no run {run_id}", run_id=run_id)
        return row

    def _session(self, run_id: str) -> Wallet:
        if run_id not in self._sessions:
            self._sessions[run_id] = self._wallets.session(run_id)
        return self._sessions[run_id]

    def _courier(self, row: store.RunRow) -> Courier:
        user, session = self._wallets.user(), self._session(row.run_id)
        if (user.address, session.address, self._chain.mint) != (row.user, row.session, row.mint):
            raise SettlementError(
                f"run {row.run_id} was opened with other wallets or on another chain",
                hint="Restore the wallets folder and the chain file of that time.",
                run_id=row.run_id,
            )
        vault = Vault(row.run_id, row.user, row.session, row.mint, self._chain.decimals)
        return Courier(self._conn(), self._chain, vault, user, session, self._at)

    def _open(self, row: store.RunRow) -> str:
        conn = self._conn()
        if row.state != store.OPENING:
            sent = store.newest_sent(conn, row.run_id, "open")
            assert sent is not None
            return sent.signature
        if store.newest_sent(conn, row.run_id, "open") is None:
            self._chain.provide(row.user, row.budget_units)
        signature = self._courier(row).open(row.budget_units)
        with store.transaction(conn):
            store.set_state(conn, row.run_id, store.OPEN)
        return signature

    def _fund(self, run_id: str, budget_units: int) -> str | None:
        """Brings the vault to `budget_units`; None when it was given as much already."""
        self._courier(self._row(run_id)).finish_funding()
        row = self._row(run_id)
        if budget_units <= row.budget_units:
            return None
        self._chain.provide(row.user, budget_units - row.budget_units)
        return self._courier(row).fund(row.budget_units, budget_units)

    def _plan(self, run_id: str) -> None:
        """Fixes what will be paid: from here on the run takes no receipts."""
        conn = self._conn()
        by_wallet: dict[str, int] = {}
        for voucher in store.vouchers(conn, run_id):
            by_wallet[voucher.wallet] = by_wallet.get(voucher.wallet, 0) + voucher.units
        store.add_payouts(conn, run_id, [(wallet, units) for wallet, units in by_wallet.items() if units])
        store.set_root(conn, run_id, merkle_root([leaf_hash(body) for body in store.receipt_bodies(conn, run_id)]))
        store.set_state(conn, run_id, store.SETTLING)

    def _cover(self, row: store.RunRow) -> None:
        """Sees that the vault holds what is owed: adds it where the user set no budget, else refuses before anything is paid."""
        owed = sum(units for _, units in store.payouts(self._conn(), row.run_id))
        if owed > row.budget_units and row.capped:
            raise SettlementError(
                f"run {row.run_id} owes {owed} base units and its vault was given {row.budget_units}",
                hint="An error of depin_nb's: the budget should have stopped the run. The receipts are kept.",
                run_id=row.run_id,
            )
        self._fund(row.run_id, owed)

    def _result(self, row: store.RunRow) -> SettlementResult:
        conn = self._conn()
        return SettlementResult(
            run_id=row.run_id,
            signatures=tuple(sent.signature for sent in store.sent(conn, row.run_id)),
            paid=dict(store.payouts(conn, row.run_id)),
            merkle_root=(row.root or b"").hex(),
            refunded=row.refunded,
            receipts=len(store.receipt_bodies(conn, row.run_id)),
            chain=self._chain.name,
            simulated=self._chain.simulated,
        )
