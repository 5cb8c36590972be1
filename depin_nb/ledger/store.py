"""The ledger's tables in the journal's database. Nothing here begins or commits a transaction: the caller owns it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from depin_nb.core.errors import JournalError, SettlementError

from .receipt import Frontier, Receipt
from .voucher import Voucher

OPENING, OPEN, SETTLING, SETTLED = "opening", "open", "settling", "settled"
WRITTEN, CONFIRMED, EXPIRED = "written", "confirmed", "expired"

TABLES = (
    """CREATE TABLE IF NOT EXISTS ledger_runs (
        run_id TEXT PRIMARY KEY, user TEXT NOT NULL, session TEXT NOT NULL, mint TEXT NOT NULL, budget_units INTEGER NOT NULL,
        capped INTEGER NOT NULL, state TEXT NOT NULL, root BLOB, refunded INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE IF NOT EXISTS ledger_receipts (
        run_id TEXT NOT NULL, position INTEGER NOT NULL, lease_id TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (run_id, position), UNIQUE (run_id, lease_id))""",
    """CREATE TABLE IF NOT EXISTS ledger_vouchers (
        run_id TEXT NOT NULL, worker_id TEXT NOT NULL, wallet TEXT NOT NULL, units INTEGER NOT NULL, sequence INTEGER NOT NULL,
        root BLOB NOT NULL, signature BLOB NOT NULL, frontier BLOB NOT NULL, PRIMARY KEY (run_id, worker_id, wallet))""",
    """CREATE TABLE IF NOT EXISTS ledger_payouts (
        run_id TEXT NOT NULL, wallet TEXT NOT NULL, units INTEGER NOT NULL, step TEXT NOT NULL DEFAULT '', PRIMARY KEY (run_id, wallet))""",
    """CREATE TABLE IF NOT EXISTS ledger_transactions (
        number INTEGER PRIMARY KEY, run_id TEXT NOT NULL, step TEXT NOT NULL, signature TEXT NOT NULL UNIQUE, blockhash TEXT NOT NULL,
        signed BLOB NOT NULL, state TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS ledger_transactions_by_step ON ledger_transactions (run_id, step)",
)


@dataclass(frozen=True)
class RunRow:
    """A run as the ledger knows it. `budget_units`: what its vault was funded with; `capped`: whether the user set that limit."""

    run_id: str
    user: str
    session: str
    mint: str
    budget_units: int
    capped: bool
    state: str
    root: bytes | None
    refunded: int


@dataclass(frozen=True)
class SentRow:
    """One signed transaction, written here before it is sent. `step`: `open`, `fund-OLD-NEW`, `pay-N` or `close`."""

    run_id: str
    step: str
    signature: str
    blockhash: str
    signed: bytes
    state: str


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection to the journal's database for the ledger alone: every commit is on disk when it returns.

    It may move between threads, but serves one at a time. Raises JournalError with the path.
    """
    try:
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        conn = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
        if not read_only:
            conn.execute("PRAGMA journal_mode=WAL")
            conn.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error as error:
        raise JournalError(f"the database can't be opened: {error}", hint=f"Check {path}.", path=str(path)) from error
    return conn


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """BEGIN IMMEDIATE, then COMMIT, or ROLLBACK on any exception. For callers; nothing else in this module uses it."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield conn
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:  # on a full disk SQLite has rolled back by itself; a COMMIT that fails may leave it open
            conn.execute("ROLLBACK")
        raise


def create_tables(conn: sqlite3.Connection) -> None:
    """Makes the ledger's tables where they aren't there."""
    for statement in TABLES:
        conn.execute(statement)


# --- runs -------------------------------------------------------------------------------------------


def add_run(conn: sqlite3.Connection, run: RunRow) -> None:
    conn.execute(
        "INSERT INTO ledger_runs (run_id, user, session, mint, budget_units, capped, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run.run_id, run.user, run.session, run.mint, run.budget_units, run.capped, run.state),
    )


def run(conn: sqlite3.Connection, run_id: str) -> RunRow | None:
    row = conn.execute(
        "SELECT run_id, user, session, mint, budget_units, capped, state, root, refunded FROM ledger_runs WHERE run_id = ?", (run_id,)
    ).fetchone()
    if row is None:
        return None
    found, user, session, mint, budget_units, capped, state, root, refunded = row
    return RunRow(found, user, session, mint, budget_units, bool(capped), state, root, refunded)


def runs_in(conn: sqlite3.Connection, *states: str) -> list[str]:
    marks = ", ".join("?" for _ in states)
    return [row[0] for row in conn.execute(f"SELECT run_id FROM ledger_runs WHERE state IN ({marks}) ORDER BY rowid", states)]


def set_state(conn: sqlite3.Connection, run_id: str, state: str) -> None:
    conn.execute("UPDATE ledger_runs SET state = ? WHERE run_id = ?", (state, run_id))


def set_budget(conn: sqlite3.Connection, run_id: str, budget_units: int) -> None:
    conn.execute("UPDATE ledger_runs SET budget_units = ? WHERE run_id = ?", (budget_units, run_id))


def set_capped(conn: sqlite3.Connection, run_id: str) -> None:
    conn.execute("UPDATE ledger_runs SET capped = 1 WHERE run_id = ?", (run_id,))


def set_root(conn: sqlite3.Connection, run_id: str, root: bytes) -> None:
    conn.execute("UPDATE ledger_runs SET root = ? WHERE run_id = ?", (root, run_id))


def set_refunded(conn: sqlite3.Connection, run_id: str, units: int) -> None:
    conn.execute("UPDATE ledger_runs SET refunded = ? WHERE run_id = ?", (units, run_id))


# --- receipts and vouchers --------------------------------------------------------------------------


def add_receipt(conn: sqlite3.Connection, receipt: Receipt) -> bool:
    """Adds a receipt; False when that lease has it already. Raises SettlementError when it has a different one."""
    body = receipt.to_bytes()
    found = conn.execute(
        "SELECT body FROM ledger_receipts WHERE run_id = ? AND lease_id = ?", (receipt.run_id, receipt.lease_id)
    ).fetchone()
    if found is not None:
        if bytes(found[0]) != body:
            raise SettlementError(f"lease {receipt.lease_id} has another receipt already", run_id=receipt.run_id)
        return False
    conn.execute(
        "INSERT INTO ledger_receipts (run_id, position, lease_id, body) "
        "VALUES (?1, (SELECT COALESCE(MAX(position), 0) + 1 FROM ledger_receipts WHERE run_id = ?1), ?2, ?3)",
        (receipt.run_id, receipt.lease_id, body),
    )
    return True


def receipts(conn: sqlite3.Connection, run_id: str) -> list[Receipt]:
    """A run's receipts in order. Raises CodecError when one can't be read."""
    return [Receipt.from_bytes(body) for body in receipt_bodies(conn, run_id)]


def receipt_bodies(conn: sqlite3.Connection, run_id: str) -> list[bytes]:
    """The canonical bytes of a run's receipts, in the order of the Merkle tree's leaves."""
    rows = conn.execute("SELECT body FROM ledger_receipts WHERE run_id = ? ORDER BY position", (run_id,))
    return [bytes(row[0]) for row in rows]


_VOUCHER = "SELECT run_id, worker_id, wallet, units, sequence, root, signature, frontier FROM ledger_vouchers WHERE run_id = ?"


def voucher(conn: sqlite3.Connection, run_id: str, worker_id: str, wallet: str) -> tuple[Voucher, Frontier] | None:
    """The newest voucher of a worker, and its receipts' Merkle frontier."""
    row = conn.execute(_VOUCHER + " AND worker_id = ? AND wallet = ?", (run_id, worker_id, wallet)).fetchone()
    return None if row is None else (Voucher(*row[:7]), Frontier.from_bytes(row[7]))


def vouchers(conn: sqlite3.Connection, run_id: str) -> list[Voucher]:
    return [Voucher(*row[:7]) for row in conn.execute(_VOUCHER + " ORDER BY worker_id, wallet", (run_id,))]


def put_voucher(conn: sqlite3.Connection, voucher: Voucher, frontier: Frontier) -> None:
    """Replaces that worker's voucher."""
    conn.execute(
        "INSERT OR REPLACE INTO ledger_vouchers (run_id, worker_id, wallet, units, sequence, root, signature, frontier) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*(getattr(voucher, name) for name in voucher.__dataclass_fields__), frontier.to_bytes()),
    )


# --- settlement -------------------------------------------------------------------------------------


def add_payouts(conn: sqlite3.Connection, run_id: str, payouts: Sequence[tuple[str, int]]) -> None:
    conn.executemany("INSERT INTO ledger_payouts (run_id, wallet, units) VALUES (?, ?, ?)", [(run_id, *payout) for payout in payouts])


def payouts(conn: sqlite3.Connection, run_id: str, step: str | None = None) -> list[tuple[str, int]]:
    """(wallet, units): of one step, of none yet (`""`), or all (None)."""
    rows = conn.execute(
        "SELECT wallet, units FROM ledger_payouts WHERE run_id = ?1 AND (?2 IS NULL OR step = ?2) ORDER BY rowid", (run_id, step)
    )
    return [(row[0], row[1]) for row in rows]


def pay_steps(conn: sqlite3.Connection, run_id: str) -> list[str]:
    """The steps that payouts were put into, in order."""
    rows = conn.execute("SELECT step FROM ledger_payouts WHERE run_id = ? AND step != '' GROUP BY step ORDER BY MIN(rowid)", (run_id,))
    return [row[0] for row in rows]


def assign(conn: sqlite3.Connection, run_id: str, step: str, wallets: Sequence[str]) -> None:
    """Puts those wallets' payouts into a step; each may be put once."""
    for wallet in wallets:
        done = conn.execute(
            "UPDATE ledger_payouts SET step = ? WHERE run_id = ? AND wallet = ? AND step = ''", (step, run_id, wallet)
        ).rowcount
        if done != 1:
            raise SettlementError(f"the payout to {wallet} is in a transaction already", run_id=run_id)


def add_sent(conn: sqlite3.Connection, sent: SentRow) -> None:
    conn.execute(
        "INSERT INTO ledger_transactions (run_id, step, signature, blockhash, signed, state) VALUES (?, ?, ?, ?, ?, ?)",
        (sent.run_id, sent.step, sent.signature, sent.blockhash, sent.signed, sent.state),
    )


_SENT = "SELECT run_id, step, signature, blockhash, signed, state FROM ledger_transactions WHERE run_id = ?"


def newest_sent(conn: sqlite3.Connection, run_id: str, step: str) -> SentRow | None:
    row = conn.execute(_SENT + " AND step = ? ORDER BY number DESC LIMIT 1", (run_id, step)).fetchone()
    return None if row is None else SentRow(*row)


def sent(conn: sqlite3.Connection, run_id: str, state: str = CONFIRMED) -> list[SentRow]:
    return [SentRow(*row) for row in conn.execute(_SENT + " AND state = ? ORDER BY number", (run_id, state))]


def unfinished(conn: sqlite3.Connection, run_id: str, kind: str) -> list[str]:
    """The steps named `<kind>-..` of which no transaction is confirmed, in order."""
    rows = conn.execute(
        "SELECT step FROM ledger_transactions WHERE run_id = ? AND step LIKE ? "
        "GROUP BY step HAVING SUM(state = ?) = 0 ORDER BY MIN(number)",
        (run_id, f"{kind}-%", CONFIRMED),
    )
    return [row[0] for row in rows]


def mark_sent(conn: sqlite3.Connection, signature: str, state: str) -> None:
    conn.execute("UPDATE ledger_transactions SET state = ? WHERE signature = ?", (state, signature))
