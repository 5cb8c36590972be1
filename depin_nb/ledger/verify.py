"""Checks a run's payouts: from the chain's transactions on one side and the receipts on the other. Needs no key and changes nothing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from depin_nb.core.errors import ChainError, CodecError, NoSuchRun

from . import store
from .chain import LedgerChain
from .receipt import Receipt, leaf_hash, merkle_root
from .transaction import Parsed, TokenOp, parse
from .vault import memo_text, token_account, vault_address
from .voucher import Voucher

SPENDS = ("transfer", "transfer_checked", "burn", "burn_checked")  # take tokens out of their first account
HARMLESS = ("initialize_account3", "approve", "approve_checked", "revoke", "close_account")


@dataclass(frozen=True)
class VerifyRow:
    """One paid wallet: its worker (several, comma-separated, if they share it), its receipts, what they say and what the chain says."""

    worker_id: str
    wallet: str
    receipts: int
    units_by_receipts: int
    units_by_chain: int
    signatures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.units_by_receipts == self.units_by_chain


@dataclass(frozen=True)
class VerifyReport:
    """`ok`: everything fits. `problems`: what doesn't, in words. Units are DPN base units; `merkle_root` in hex, from the receipts."""

    run_id: str
    ok: bool
    rows: tuple[VerifyRow, ...]
    merkle_root: str
    problems: tuple[str, ...]
    vault: str
    refunded: int
    chain: str
    simulated: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class _Chain:
    """What a vault's transactions did, as read from their bytes."""

    funded: int = 0
    refunded: int = 0
    closed: bool = False
    to: Counter[str] = field(default_factory=Counter)  # token account -> units
    signatures: dict[str, list[str]] = field(default_factory=dict)  # token account -> signatures
    problems: list[str] = field(default_factory=list)


def verify_run(run_id: str, conn: sqlite3.Connection, chain: LedgerChain) -> VerifyReport:
    """Recomputes a settled run's payouts. Raises NoSuchRun for a run that the ledger doesn't have; anything else is in the report."""
    row = store.run(conn, run_id) if _has_tables(conn) else None
    if row is None:
        raise NoSuchRun(f"the ledger has no run {run_id}", run_id=run_id)
    problems: list[str] = []
    receipts, root = _receipts(conn, run_id, problems)
    problems += voucher_problems(store.vouchers(conn, run_id), row.session, receipts)
    if row.mint != chain.mint:
        problems.append(f"the run was paid in the mint {row.mint}, and this chain's is {chain.mint}")
    vault = vault_address(row.user, run_id)
    if row.state != store.SETTLED:
        problems.append(f"the run is not settled yet: it is {row.state}")
    elif row.root != root:
        problems.append("the Merkle root of the receipts is not the one that was settled")
    seen = _read_chain(_signatures(conn, row, chain, vault, problems), chain, row, vault, root)
    problems += seen.problems
    if row.state == store.SETTLED:
        if not seen.closed:
            problems.append("the vault was not closed")
        if seen.refunded != row.refunded:
            problems.append(f"{seen.refunded} base units were refunded, and the journal says {row.refunded}")
        if seen.funded > sum(seen.to.values()) + seen.refunded:  # less is possible: strangers may add to a vault, and the user gets it
            problems.append(f"the vault was funded with {seen.funded} base units, and less than that went out")
    rows = _rows(receipts, row.mint, seen)
    problems += [
        f"{line.worker_id} ({line.wallet}): receipts say {line.units_by_receipts}, the chain says {line.units_by_chain}"
        for line in rows
        if not line.ok
    ]
    _check_payouts(conn, row, rows, seen, problems)
    return VerifyReport(
        run_id, not problems, rows, root.hex(), tuple(dict.fromkeys(problems)), vault, seen.refunded, chain.name, chain.simulated
    )


def _has_tables(conn: sqlite3.Connection) -> bool:
    return conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger_runs'").fetchone() is not None


def _receipts(conn: sqlite3.Connection, run_id: str, problems: list[str]) -> tuple[list[Receipt], bytes]:
    bodies, found = store.receipt_bodies(conn, run_id), []
    for number, body in enumerate(bodies, 1):
        try:
            receipt = Receipt.from_bytes(body)
        except CodecError as error:
            problems.append(f"receipt {number} can't be read: {error.message}")
            continue
        if receipt.run_id != run_id:
            problems.append(f"receipt {number} is one of the run {receipt.run_id}")
        found.append(receipt)
    twice = [lease for lease, count in Counter(receipt.lease_id for receipt in found).items() if count > 1]
    problems += [f"lease {lease} has more than one receipt" for lease in twice]
    return found, merkle_root([leaf_hash(body) for body in bodies])


def voucher_problems(vouchers: Iterable[Voucher], session: str, receipts: Iterable[Receipt]) -> list[str]:
    """What in a run's vouchers isn't what its receipts add up to, in words; they must be signed by its `session` key."""
    problems: list[str] = []
    by_worker: dict[tuple[str, str], list[Receipt]] = {}
    for receipt in receipts:
        by_worker.setdefault((receipt.worker_id, receipt.wallet), []).append(receipt)
    known = {(voucher.worker_id, voucher.wallet): voucher for voucher in vouchers}
    for key in by_worker.keys() | known.keys():
        mine, voucher = by_worker.get(key, []), known.get(key)
        if voucher is None:
            problems.append(f"{key[0]} has receipts and no voucher")
            continue
        if not voucher.verify(session):
            problems.append(f"the voucher of {key[0]} is not signed by the run's session key")
        if voucher.units != sum(receipt.units_dpn for receipt in mine):
            problems.append(f"the voucher of {key[0]} says {voucher.units}, its receipts add up to {sum(r.units_dpn for r in mine)}")
        if voucher.root != merkle_root([receipt.leaf() for receipt in mine]) or voucher.sequence != len(mine):
            problems.append(f"the voucher of {key[0]} covers other receipts than there are")
    return problems


def _check_payouts(conn: sqlite3.Connection, row: store.RunRow, rows: tuple[VerifyRow, ...], seen: _Chain, problems: list[str]) -> None:
    known = {token_account(line.wallet, row.mint) for line in rows}
    strange = [account for account in seen.to if account not in known]
    problems += [f"{seen.to[account]} base units went to {account}, which no receipt names" for account in strange]
    due = {line.wallet: line.units_by_receipts for line in rows if line.units_by_receipts}
    if row.state in (store.SETTLED, store.SETTLING) and due != dict(store.payouts(conn, row.run_id)):
        problems.append("the journal's payouts are not what the receipts add up to")


def _signatures(conn: sqlite3.Connection, row: store.RunRow, chain: LedgerChain, vault: str, problems: list[str]) -> dict[str, bool]:
    """The vault's transactions from the run's opening on, as the chain lists them, and whether the journal has them too."""
    listed = [sent.signature for sent in store.sent(conn, row.run_id)]
    on_chain = chain.signatures(vault)
    if listed and listed[0] in on_chain:  # the same user may have had a run of this name before, on a journal since lost
        on_chain = on_chain[on_chain.index(listed[0]) :]
    problems += [f"the chain doesn't have the journal's transaction {signature}" for signature in listed if signature not in on_chain]
    return {signature: signature in listed for signature in on_chain}


def _read_chain(signatures: dict[str, bool], chain: LedgerChain, row: store.RunRow, vault: str, root: bytes) -> _Chain:
    seen, own = _Chain(), token_account(row.user, row.mint)
    for signature, listed in signatures.items():
        try:
            body = chain.transaction(signature)
            if body is None:
                raise ChainError("it is not there")
            parsed = parse(body)
            if parsed.signature != signature or not parsed.signed:
                raise ChainError("its signatures are not valid")
        except ChainError as error:
            seen.problems.append(f"the transaction {signature} can't be read: {error.message}")
            continue
        if not listed and any(_route(op)[0] == vault for op in parsed.ops):
            seen.problems.append(f"the journal doesn't have the vault's transaction {signature}")
        elif not listed:
            continue  # anyone may name the vault in a transaction, or send something to it
        _read(parsed, seen, row, vault, own, root)
    return seen


def _read(parsed: Parsed, seen: _Chain, row: store.RunRow, vault: str, own: str, root: bytes) -> None:
    closes = any(op.name == "close_account" and op.accounts[:1] == (vault,) for op in parsed.ops)
    outgoing = False
    for op in parsed.ops:
        source, dest = _route(op)
        if dest == vault and source != vault:
            seen.funded += op.amount
        if source != vault:
            continue
        if op.name not in SPENDS + HARMLESS:
            seen.problems.append(f"{parsed.signature} did something unknown to the vault")
        if op.name in ("approve", "approve_checked") and row.session not in op.accounts:
            seen.problems.append(f"{parsed.signature} let another key than the run's session key spend from the vault")
        if op.name not in SPENDS:
            continue
        if op.name == "transfer_checked" and op.accounts[1:2] != (row.mint,):
            seen.problems.append(f"{parsed.signature} moved another mint")
        if closes and dest == own:
            seen.refunded += op.amount
            continue
        outgoing = True
        seen.to[dest] += op.amount
        seen.signatures.setdefault(dest, []).append(parsed.signature)
    seen.closed = seen.closed or closes
    wanted = memo_text(row.run_id, root if outgoing or closes else None)
    if parsed.memos != (wanted,):
        seen.problems.append(f"the memo of {parsed.signature} is {' '.join(parsed.memos) or 'missing'}, not {wanted}")
    if parsed.others:
        seen.problems.append(f"{parsed.signature} calls other programs: {', '.join(parsed.others)}")


def _route(op: TokenOp) -> tuple[str, str]:
    """(source, destination) token accounts of an instruction; empty where it has none."""
    accounts = (*op.accounts, "", "", "")
    if op.name == "transfer_checked":
        return accounts[0], accounts[2]
    if op.name in ("mint_to", "mint_to_checked"):
        return "", accounts[1]
    return accounts[0], accounts[1] if op.name == "transfer" else ""


def _rows(receipts: list[Receipt], mint: str, seen: _Chain) -> tuple[VerifyRow, ...]:
    by_wallet: dict[str, list[Receipt]] = {}
    for receipt in receipts:
        by_wallet.setdefault(receipt.wallet, []).append(receipt)
    rows = []
    for wallet, mine in by_wallet.items():
        account = token_account(wallet, mint)
        workers = ", ".join(dict.fromkeys(receipt.worker_id for receipt in mine))
        units = sum(receipt.units_dpn for receipt in mine)
        rows.append(VerifyRow(workers, wallet, len(mine), units, seen.to[account], tuple(seen.signatures.get(account, ()))))
    return tuple(rows)
