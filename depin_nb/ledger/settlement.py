"""Paying a run's workers exactly once, whatever dies when.

The rules (each found by killing a prototype at every point):
- What is paid is fixed first: the run takes no more receipts, and each wallet's payout is a row.
- The *signed bytes* of a transaction are written and on disk, in one transaction with the payouts they hold, before they are sent.
- After a crash the same bytes are sent again: the chain gives the same signature and no second effect.
- New bytes for the same payouts are signed only once the old blockhash has expired *and then* the chain still doesn't know the signature.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from solders.instruction import Instruction
from solders.pubkey import Pubkey

from depin_nb.core.errors import SettlementError

from . import store
from .chain import LedgerChain
from .transaction import MAX_BYTES, build, signature_of, size_bytes
from .vault import ACCOUNT_BYTES, Vault, held_units, token_account
from .wallet import Wallet

MAX_ATTEMPTS = 5  # signings of one step in one call; each needs an expired blockhash in between
FUND = "fund"  # steps that raise a budget: `fund-<old units>-<new units>`
MAX_RECIPIENTS = 20  # more plain transfers than this never fit into 1,232 bytes (measured), so no need to try


@dataclass(frozen=True)
class SettlementResult:
    """What a settled run came to: units are DPN base units, `paid` by wallet, `merkle_root` in hex over its `receipts`."""

    run_id: str
    signatures: tuple[str, ...]
    paid: dict[str, int]
    merkle_root: str
    refunded: int
    receipts: int
    chain: str
    simulated: bool


def next_batch(payouts: Sequence[tuple[str, int]], fits: Callable[[Sequence[tuple[str, int]]], bool]) -> tuple[tuple[str, int], ...]:
    """The longest run of payouts, from the first on, that fits one transaction. Raises SettlementError if not even one does."""
    low, high = 0, min(len(payouts), MAX_RECIPIENTS)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(payouts[:middle]) else (low, middle - 1)
    if payouts and not low:
        raise SettlementError("a single payout doesn't fit a transaction")
    return tuple(payouts[:low])


@dataclass(frozen=True)
class Draft:
    """A transaction to sign, and the rows to write together with its signed bytes."""

    instructions: list[Instruction]
    rows: Callable[[], None] = lambda: None


@dataclass
class Courier:
    """Gets one run's transactions onto the chain. `at(point)` is called at each point where a crash could happen."""

    conn: sqlite3.Connection
    chain: LedgerChain
    vault: Vault
    user: Wallet
    session: Wallet
    at: Callable[[str], None]

    @property
    def run_id(self) -> str:
        return self.vault.run_id

    def deliver(self, step: str, draft: Callable[[], Draft]) -> str:
        """The step's signature once the chain has it. `draft()` is asked when signing is due.

        Raises ChainError when the chain refuses it, SettlementError when it doesn't confirm it; the bytes stay for the next try.
        """
        for _ in range(MAX_ATTEMPTS):
            row = store.newest_sent(self.conn, self.run_id, step)
            if row is None or row.state == store.EXPIRED:
                row = self._sign(step, draft())
            if row.state == store.CONFIRMED:
                return row.signature
            self.at(f"{step}: signed")
            signature = self._send(row)
            if signature is not None:
                return signature
        raise SettlementError(f"{step} of {self.run_id} expired {MAX_ATTEMPTS} times before the chain took it", run_id=self.run_id)

    def _send(self, row: store.SentRow) -> str | None:
        """Sends the very bytes; None when they have expired unseen and must be signed anew."""
        expired = self.chain.expired(row.blockhash)  # asked before the status: between the two nothing can land any more
        status = self.chain.confirmed(row.signature)
        if status is None and expired:
            with store.transaction(self.conn):
                store.mark_sent(self.conn, row.signature, store.EXPIRED)
            self.at(f"{row.step}: expired")
            return None
        if status is None:
            self.chain.send(row.signed)
            self.at(f"{row.step}: sent")
            status = self.chain.confirmed(row.signature)
        if status is not True:
            what = "failed on the chain" if status is False else "is not confirmed yet"
            raise SettlementError(f"{row.step} of {self.run_id} {what} ({row.signature})", run_id=self.run_id)
        with store.transaction(self.conn):
            store.mark_sent(self.conn, row.signature, store.CONFIRMED)
        self.at(f"{row.step}: confirmed")
        return row.signature

    def _sign(self, step: str, draft: Draft) -> store.SentRow:
        blockhash = self.chain.latest_blockhash()
        signed = build(draft.instructions, self.user, blockhash, self.session)
        row = store.SentRow(self.run_id, step, signature_of(signed), blockhash, signed, store.WRITTEN)
        with store.transaction(self.conn):
            draft.rows()
            store.add_sent(self.conn, row)
        return row

    # --- the steps ----------------------------------------------------------------------------------

    def open(self, units: int) -> str:
        """Creates and funds the vault."""
        return self.deliver("open", lambda: Draft(self.vault.open(units, self.chain.rent(ACCOUNT_BYTES))))

    def fund(self, old_units: int, new_units: int) -> str:
        """Brings the vault, and what the session key may spend, from one budget to a higher one."""

        def draft() -> Draft:
            return Draft(
                self.vault.fund(new_units - old_units, new_units),
                lambda: store.set_budget(self.conn, self.run_id, new_units),
            )

        return self.deliver(f"{FUND}-{old_units}-{new_units}", draft)

    def finish_funding(self) -> None:
        """Delivers what a forerunner had begun to fund."""
        for step in store.unfinished(self.conn, self.run_id, FUND):
            _, old_units, new_units = step.split("-")
            self.fund(int(old_units), int(new_units))

    def pay(self, root: bytes) -> None:
        """Pays every payout of the run that isn't paid yet."""
        for step in store.pay_steps(self.conn, self.run_id):  # begun by a forerunner
            self._pay_step(step, root)
        while store.payouts(self.conn, self.run_id, ""):
            self._pay_step(f"pay-{len(store.pay_steps(self.conn, self.run_id)) + 1}", root)

    def _pay_step(self, step: str, root: bytes) -> str:
        def draft() -> Draft:
            mine = store.payouts(self.conn, self.run_id, step)
            waiting = mine or store.payouts(self.conn, self.run_id, "")[:MAX_RECIPIENTS]
            missing = frozenset(wallet for wallet, _ in waiting if self.chain.account(token_account(wallet, self.vault.mint)) is None)
            if mine:
                return Draft(self.vault.pay(mine, missing, root))
            batch = next_batch(waiting, lambda part: self._size(part, missing, root) <= MAX_BYTES)
            wallets = [wallet for wallet, _ in batch]
            return Draft(self.vault.pay(batch, missing, root), lambda: store.assign(self.conn, self.run_id, step, wallets))

        return self.deliver(step, draft)

    def _size(self, part: Sequence[tuple[str, int]], missing: frozenset[str], root: bytes) -> int:
        return size_bytes(self.vault.pay(part, missing, root), Pubkey.from_string(self.vault.user))

    def close(self, root: bytes) -> str:
        """Gives the rest back to the user and closes the vault."""

        def draft() -> Draft:
            rest = self.held()
            return Draft(self.vault.close(rest, root), lambda: store.set_refunded(self.conn, self.run_id, rest))

        return self.deliver("close", draft)

    def held(self) -> int:
        """What the vault holds now, in base units."""
        account = self.chain.account(self.vault.address)
        return held_units(account) if account is not None else 0
