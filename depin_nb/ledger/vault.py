"""A run's vault: a token account of its own that holds the run's budget, and lets the run's session key spend that much and no more.

One transaction opens it: the account is created from (user, run id), funded, and a capped delegate approved, so the cap holds on the chain
itself even if the session key is stolen; only the user can close it. Two runs side by side have two vaults. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from solders.instruction import Instruction
from solders.pubkey import Pubkey
from solders.system_program import CreateAccountWithSeedParams, create_account_with_seed
from spl.token import instructions as token
from spl.token.models import (
    ApproveCheckedParams,
    CloseAccountParams,
    InitializeAccount3Params,
    TransferCheckedParams,
)

from .transaction import TOKEN_PROGRAM, memo

ACCOUNT_BYTES = 165  # spl-token's Account::LEN
MAX_SEED_BYTES = 32  # solana-program's MAX_SEED_LEN


def seed(run_id: str) -> str:
    """The run's id, or a hash of it where it is longer than a seed may be."""
    return run_id if len(run_id.encode()) <= MAX_SEED_BYTES else sha256(run_id.encode()).hexdigest()[:MAX_SEED_BYTES]


def vault_address(user: str, run_id: str) -> str:
    """Where that user's vault for that run is: anyone can compute it."""
    return str(Pubkey.create_with_seed(Pubkey.from_string(user), seed(run_id), TOKEN_PROGRAM))


def token_account(owner: str, mint: str) -> str:
    """The associated token account of a wallet: where it is paid."""
    return str(token.get_associated_token_address(Pubkey.from_string(owner), Pubkey.from_string(mint)))


def held_units(account: bytes) -> int:
    """The balance in an SPL token account's data, in base units (bytes 64 to 72: mint, owner, then amount)."""
    return int.from_bytes(account[64:72], "little")


def memo_text(run_id: str, root: bytes | None) -> str:
    """What a run's transactions carry as memo: `depin:<run>:<Merkle root>`, or `depin:<run>:open` before there is a root."""
    return f"depin:{run_id}:{root.hex() if root is not None else 'open'}"


@dataclass(frozen=True)
class Vault:
    """Addresses of one run's vault, and the instructions that move its tokens."""

    run_id: str
    user: str
    session: str
    mint: str
    decimals: int

    @property
    def address(self) -> str:
        return vault_address(self.user, self.run_id)

    @property
    def _keys(self) -> tuple[Pubkey, Pubkey, Pubkey, Pubkey]:
        return tuple(Pubkey.from_string(text) for text in (self.address, self.user, self.session, self.mint))  # type: ignore[return-value]

    def open(self, units: int, rent_lamports: int) -> list[Instruction]:
        """Creates the vault, funds it with `units` from the user's token account, and approves the session key for as many. User signs."""
        vault, user, _, mint = self._keys
        return [
            create_account_with_seed(
                CreateAccountWithSeedParams(
                    from_pubkey=user,
                    to_pubkey=vault,
                    base=user,
                    seed=seed(self.run_id),
                    lamports=rent_lamports,
                    space=ACCOUNT_BYTES,
                    owner=TOKEN_PROGRAM,
                )
            ),
            token.initialize_account3(InitializeAccount3Params(program_id=TOKEN_PROGRAM, account=vault, mint=mint, owner=user)),
            *self.fund(units, units),
        ]

    def fund(self, units: int, allowed_units: int) -> list[Instruction]:
        """Moves `units` more from the user's token account into the vault, and approves the session key for `allowed_units`. User signs."""
        vault, user, session, mint = self._keys
        own = Pubkey.from_string(token_account(self.user, self.mint))
        return [
            *([self._transfer(own, vault, user, units)] if units else []),
            token.approve_checked(
                ApproveCheckedParams(
                    program_id=TOKEN_PROGRAM,
                    source=vault,
                    mint=mint,
                    delegate=session,
                    owner=user,
                    amount=allowed_units,
                    decimals=self.decimals,
                )
            ),
            memo(memo_text(self.run_id, None)),
        ]

    def pay(self, payouts: Sequence[tuple[str, int]], missing: frozenset[str], root: bytes) -> list[Instruction]:
        """Pays (wallet, units), and creates the token accounts of those in `missing`. The session key signs, and the user for the fee."""
        vault, user, session, mint = self._keys
        found: list[Instruction] = []
        for wallet, units in payouts:
            if wallet in missing:
                found.append(token.create_idempotent_associated_token_account(user, Pubkey.from_string(wallet), mint))
            found.append(self._transfer(vault, Pubkey.from_string(token_account(wallet, self.mint)), session, units))
        return [*found, memo(memo_text(self.run_id, root))]

    def close(self, rest_units: int, root: bytes) -> list[Instruction]:
        """Sends the rest back to the user's token account and the rent to the user. User signs."""
        vault, user, _, _ = self._keys
        own = Pubkey.from_string(token_account(self.user, self.mint))
        return [
            *([self._transfer(vault, own, user, rest_units)] if rest_units else []),
            token.close_account(CloseAccountParams(program_id=TOKEN_PROGRAM, account=vault, dest=user, owner=user)),
            memo(memo_text(self.run_id, root)),
        ]

    def _transfer(self, source: Pubkey, dest: Pubkey, owner: Pubkey, units: int) -> Instruction:
        return token.transfer_checked(
            TransferCheckedParams(
                program_id=TOKEN_PROGRAM,
                source=source,
                mint=Pubkey.from_string(self.mint),
                dest=dest,
                owner=owner,
                amount=units,
                decimals=self.decimals,
            )
        )
