"""The embedded chain: the real Solana programs (SPL Token, associated token accounts, memo) in LiteSVM, in process. Value is *simulated*.

What it is lives in one SQLite file: the genesis, and the signed bytes of every accepted transaction in order. Opening it replays those very
bytes in a fresh LiteSVM, signatures checked, so a restarted hub or another process arrives at the same accounts. Each slot's blockhash
covers everything before it; a changed, missing or added transaction is found when the file is opened.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

from solders.account import Account
from solders.hash import Hash
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from solders.system_program import CreateAccountWithSeedParams, TransferParams, create_account_with_seed, transfer
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata
from spl.token import instructions as token
from spl.token.models import InitializeMint2Params, MintToCheckedParams

from depin_nb.core import config
from depin_nb.core.amount import DPN
from depin_nb.core.errors import ChainError, JournalError

from .machine import Machine
from .store import connect, transaction
from .transaction import SYSTEM_PROGRAM, TOKEN_PROGRAM, build, decode
from .vault import held_units, token_account
from .wallet import Wallet, Wallets

VERSION = 1
BLOCKHASH_SLOTS = 150  # a blockhash serves for so many slots, as on Solana (MAX_PROCESSING_AGE)
HISTORY = 1_000_000  # LiteSVM's default is short: a transaction that has left the history would run a second time
MINT_BYTES = 82  # spl-token's Mint::LEN
MINT_SEED = "depin-nb DPN"
GENESIS_LAMPORTS = 10**9 * 10**9  # the faucet's, simulated
FEE_LAMPORTS = 100 * 10**9  # a user is given so much for fees and rents, simulated
DOMAIN = b"depin-nb embedded chain v1\x00"


class EmbeddedChain:
    """A LedgerChain in a file (default `config.chain_file()`). With `wallets` it is made if need be, and has a faucet; without, it is read.

    Safe to use from any thread, and from several processes at once: each sees what the others had accepted. Raises ChainError when
    the file can't be read, or isn't what its blockhashes say.
    """

    name = "embedded (LiteSVM, simulated value)"
    simulated = True
    decimals = DPN.decimals

    def __init__(self, path: Path | None = None, wallets: Wallets | None = None) -> None:
        self.path = path if path is not None else config.chain_file()
        self._wallets = wallets
        self._lock = threading.RLock()
        self._slot = 0
        self._hashes: dict[str, int] = {}  # blockhash -> slot
        self._bytes: dict[str, bytes] = {}  # signature -> signed transaction
        self._touched: dict[bytes, list[str]] = {}  # pubkey -> signatures
        if wallets is None and not self.path.exists():
            raise ChainError(f"there is no embedded chain at {self.path}", hint="`%depin up` makes it.")
        try:
            self._conn = connect(self.path, read_only=wallets is None)
        except JournalError as error:
            raise ChainError(f"the embedded chain in {self.path} can't be opened: {error.message}") from error
        self._svm = Machine(lambda: LiteSVM().with_transaction_history(HISTORY).with_blockhash_check(False))
        try:
            genesis = self._genesis()
            for row in json.loads(genesis)["accounts"]:
                account = Account(lamports=row["lamports"], data=b"", owner=SYSTEM_PROGRAM)
                self._svm.set_account(Pubkey.from_string(row["address"]), account)
            self._authority = Pubkey.from_string(json.loads(genesis)["authority"])
            self._newest = str(Hash(sha256(DOMAIN + genesis.encode()).digest()))
            self._hashes[self._newest] = 0
            self.mint = str(Pubkey.create_with_seed(self._authority, MINT_SEED, TOKEN_PROGRAM))
            self._catch_up()
            if wallets is not None and self.account(self.mint) is None:
                self._create_mint()
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            self.close()
            raise ChainError(f"the embedded chain in {self.path} can't be read: {error}", hint="Restore it from a copy.") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._svm.close()
        self._conn.close()

    # --- ports.Chain --------------------------------------------------------------------------------

    def send(self, signed: bytes) -> str:
        """Runs the transaction if it succeeds in a simulation first (as a node's preflight does), and keeps it; else raises ChainError.

        It is on disk before it has its effect. Bytes that were accepted before are answered with their signature and have no effect.
        """
        found = decode(signed)
        signature = str(found.signatures[0])
        with self._lock:
            if self.confirmed(signature) is not None:
                return signature
            with transaction(self._conn):
                self._catch_up()
                if signature in self._bytes:
                    return signature
                if self.expired(str(found.message.recent_blockhash)):
                    raise ChainError("the transaction's blockhash is not, or no longer, valid", signature=signature, logs=[])
                self._check(self._svm.simulate_transaction(found), signature)
                blockhash = self._next_hash(signed)
                self._conn.execute("INSERT INTO slots VALUES (?, ?, ?, ?)", (self._slot + 1, blockhash, signature, signed))
            self._catch_up()
        return signature

    def confirmed(self, signature: str) -> bool | None:
        """True for an accepted transaction, None for any other: what fails in the preflight never gets onto the chain."""
        with self._lock:
            self._catch_up()
            return True if signature in self._bytes else None

    def latest_blockhash(self) -> str:
        with self._lock:
            self._catch_up()
            return self._newest

    def account(self, address: str) -> bytes | None:
        with self._lock:
            self._catch_up()
            found = self._svm.get_account(_pubkey(address))
            return bytes(found.data) if found is not None and found.lamports else None

    def transaction(self, signature: str) -> bytes | None:
        with self._lock:
            self._catch_up()
            return self._bytes.get(signature)

    # --- LedgerChain --------------------------------------------------------------------------------

    def expired(self, blockhash: str) -> bool:
        with self._lock:
            self._catch_up()
            slot = self._hashes.get(blockhash)
            return slot is None or slot <= self._slot - BLOCKHASH_SLOTS

    def rent(self, size_bytes: int) -> int:
        return int(self._svm.minimum_balance_for_rent_exemption(size_bytes))

    def signatures(self, address: str) -> list[str]:
        with self._lock:
            self._catch_up()
            return list(self._touched.get(bytes(_pubkey(address)), ()))

    def provide(self, owner: str, units: int) -> None:
        """Gives `owner` the simulated DPN and lamports that it lacks."""
        with self._lock:
            key, mint = _pubkey(owner), Pubkey.from_string(self.mint)
            held = self.account(token_account(owner, self.mint))
            lacking = units - (held_units(held) if held is not None else 0)
            lamports = FEE_LAMPORTS - int(self._svm.get_balance(key) or 0)
            steps = []
            if lamports > FEE_LAMPORTS // 2:
                steps.append(transfer(TransferParams(from_pubkey=self._authority, to_pubkey=key, lamports=lamports)))
            if held is None:
                steps.append(token.create_idempotent_associated_token_account(self._authority, key, mint))
            if lacking > 0:
                steps.append(
                    token.mint_to_checked(
                        MintToCheckedParams(
                            program_id=TOKEN_PROGRAM,
                            mint=mint,
                            dest=Pubkey.from_string(token_account(owner, self.mint)),
                            mint_authority=self._authority,
                            amount=lacking,
                            decimals=self.decimals,
                        )
                    )
                )
            if steps:
                self.send(build(steps, self._faucet(), self.latest_blockhash()))

    def advance(self, slots: int) -> None:
        """Lets slots without transactions go by, so that older blockhashes expire."""
        with self._lock:
            for _ in range(slots):
                with transaction(self._conn):
                    self._catch_up()
                    self._conn.execute("INSERT INTO slots VALUES (?, ?, NULL, NULL)", (self._slot + 1, self._next_hash(b"")))
            self._catch_up()

    # --- inside -------------------------------------------------------------------------------------

    def _genesis(self) -> str:
        if self._wallets is not None:
            with transaction(self._conn):
                self._conn.execute("CREATE TABLE IF NOT EXISTS genesis (version INTEGER NOT NULL, body TEXT NOT NULL)")
                self._conn.execute(
                    "CREATE TABLE IF NOT EXISTS slots "
                    "(slot INTEGER PRIMARY KEY, blockhash TEXT NOT NULL, signature TEXT UNIQUE, signed BLOB)"
                )
                if self._conn.execute("SELECT 1 FROM genesis").fetchone() is None:
                    authority = self._wallets.authority().address
                    body = {"authority": authority, "accounts": [{"address": authority, "lamports": GENESIS_LAMPORTS}]}
                    self._conn.execute("INSERT INTO genesis VALUES (?, ?)", (VERSION, json.dumps(body, sort_keys=True)))
        row = self._conn.execute("SELECT version, body FROM genesis").fetchone()
        if row is None or row[0] != VERSION:
            raise ChainError(f"the embedded chain in {self.path} has another version than {VERSION}")
        return str(row[1])

    def _faucet(self) -> Wallet:
        wallet = self._wallets.authority() if self._wallets is not None else None
        if wallet is None or wallet.pubkey != self._authority:
            raise ChainError("this is not the embedded chain's own mint authority", hint="Its key is the wallet mint-authority.json.")
        return wallet

    def _create_mint(self) -> None:
        mint = Pubkey.from_string(self.mint)
        create = create_account_with_seed(
            CreateAccountWithSeedParams(
                from_pubkey=self._authority,
                to_pubkey=mint,
                base=self._authority,
                seed=MINT_SEED,
                lamports=self.rent(MINT_BYTES),
                space=MINT_BYTES,
                owner=TOKEN_PROGRAM,
            )
        )
        initialize = token.initialize_mint2(
            InitializeMint2Params(program_id=TOKEN_PROGRAM, mint=mint, decimals=self.decimals, mint_authority=self._authority)
        )
        self.send(build([create, initialize], self._faucet(), self.latest_blockhash()))

    def _next_hash(self, signed: bytes) -> str:
        return str(Hash(sha256(DOMAIN + bytes(Hash.from_string(self._newest)) + signed).digest()))

    def _catch_up(self) -> None:
        """Runs what the file has and this process hasn't: all of it when opened, later what others added."""
        rows = self._conn.execute("SELECT slot, blockhash, signature, signed FROM slots WHERE slot > ? ORDER BY slot", (self._slot,))
        for slot, blockhash, signature, signed in rows.fetchall():
            if slot != self._slot + 1 or blockhash != self._next_hash(signed or b""):
                raise ChainError(f"the embedded chain in {self.path} was changed at slot {slot}: its blockhash doesn't fit")
            if signed is not None:
                self._run(decode(signed), signature, signed)
            self._slot, self._newest = slot, blockhash
            self._hashes[blockhash] = slot

    def _run(self, found: VersionedTransaction, signature: str, signed: bytes) -> None:
        if str(found.signatures[0]) != signature:
            raise ChainError(f"the embedded chain in {self.path} was changed: a signature doesn't fit its transaction")
        self._check(self._svm.send_transaction(found), signature)
        self._bytes[signature] = bytes(signed)
        for key in found.message.account_keys:
            self._touched.setdefault(bytes(key), []).append(signature)

    def _check(self, result: Any, signature: str) -> None:
        if isinstance(result, FailedTransactionMetadata):
            logs = list(result.meta().logs())
            last = next((line for line in reversed(logs) if "failed" in line), str(result.err()))
            raise ChainError(f"the chain refused a transaction: {last}", signature=signature, logs=logs)


def _pubkey(address: str) -> Pubkey:
    try:
        return Pubkey.from_string(address)
    except ValueError as error:
        raise ChainError(f"{address!r} is not an address") from error
