"""Solana transactions as bytes: built and signed here, and read back here by the verifier. No chain is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solders.hash import Hash
from solders.instruction import Instruction
from solders.message import Message
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from depin_nb.core.errors import ChainError

from .wallet import Wallet

MAX_BYTES = 1232  # IPv6 minimum MTU 1280 less 48 bytes of headers: solana-sdk's PACKET_DATA_SIZE
TOKEN_PROGRAM = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
ASSOCIATED_PROGRAM = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
MEMO_PROGRAM = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
SYSTEM_PROGRAM = Pubkey.from_string("11111111111111111111111111111111")

# spl-token's TokenInstruction numbers (program/src/instruction.rs): name, and whether a u64 amount follows
TOKEN_OPS = {
    3: ("transfer", True), 4: ("approve", True), 5: ("revoke", False), 6: ("set_authority", False), 7: ("mint_to", True),
    8: ("burn", True), 9: ("close_account", False), 12: ("transfer_checked", True), 13: ("approve_checked", True),
    14: ("mint_to_checked", True), 15: ("burn_checked", True), 18: ("initialize_account3", False),
}  # fmt: skip


@dataclass(frozen=True)
class TokenOp:
    """One instruction to the token program: its name, its accounts in order (base58), its amount in base units (0 where it has none)."""

    name: str
    accounts: tuple[str, ...]
    amount: int = 0


@dataclass(frozen=True)
class Parsed:
    """A transaction taken apart. `others`: programs it calls other than the token, associated token, memo and system programs."""

    signature: str
    blockhash: str
    payer: str
    signers: tuple[str, ...]
    signed: bool
    ops: tuple[TokenOp, ...]
    memos: tuple[str, ...]
    others: tuple[str, ...]


def memo(text: str) -> Instruction:
    """A memo without signers of its own: the transaction's signatures cover it."""
    return Instruction(MEMO_PROGRAM, text.encode(), [])


def _message(instructions: Sequence[Instruction], payer: Pubkey, blockhash: str) -> Message:
    return Message.new_with_blockhash(list(instructions), payer, Hash.from_string(blockhash))


def size_bytes(instructions: Sequence[Instruction], payer: Pubkey) -> int:
    """How long the signed transaction will be: a count byte, 64 bytes a signature, and the message."""
    message = _message(instructions, payer, str(Hash.default()))
    return 1 + 64 * message.header.num_required_signatures + len(bytes(message))


def build(instructions: Sequence[Instruction], payer: Wallet, blockhash: str, *others: Wallet) -> bytes:
    """The signed transaction's bytes. Raises ChainError when it is longer than 1,232 bytes or a signer is missing."""
    message = _message(instructions, payer.pubkey, blockhash)
    by_key = {wallet.pubkey: wallet for wallet in (payer, *others)}
    wanted = message.account_keys[: message.header.num_required_signatures]
    if any(key not in by_key for key in wanted):
        raise ChainError("a signer of the transaction is missing")
    body = bytes(message)
    signed = bytes(VersionedTransaction.populate(message, [Signature.from_bytes(by_key[key].sign(body)) for key in wanted]))
    if len(signed) > MAX_BYTES:
        raise ChainError(f"a transaction of {len(signed)} bytes is longer than the {MAX_BYTES} that a packet carries")
    return signed


def decode(signed: bytes) -> VersionedTransaction:
    """The transaction in those bytes, and nothing beside it. Raises ChainError for anything else.

    solders panics on some malformed bytes, and its PanicException is no Exception: it is turned into a ChainError too.
    """
    if len(signed) > MAX_BYTES:
        raise ChainError(f"a transaction of {len(signed)} bytes is longer than the {MAX_BYTES} that a packet carries")
    try:
        found = VersionedTransaction.from_bytes(signed)
        found.sanitize()
        exact = bytes(found) == signed and bool(found.signatures) and bool(found.message.account_keys)
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ChainError(f"not a transaction: {error}") from None
        raise
    if not exact:
        raise ChainError("not a transaction: bytes are left over, or nobody signed it")
    return found


def signature_of(signed: bytes) -> str:
    """A transaction's id: its first signature, base58."""
    return str(decode(signed).signatures[0])


def parse(signed: bytes) -> Parsed:
    """Takes a transaction apart. Raises ChainError when the bytes are none, or use accounts that they don't list (lookup tables)."""
    found = decode(signed)
    message = found.message
    keys = [str(key) for key in message.account_keys]
    ops: list[TokenOp] = []
    memos: list[str] = []
    others: list[str] = []
    try:
        for instruction in message.instructions:
            program = message.account_keys[instruction.program_id_index]
            if program == TOKEN_PROGRAM:
                ops.append(_token_op(instruction.data, tuple(keys[i] for i in instruction.accounts)))
            elif program == MEMO_PROGRAM:
                memos.append(instruction.data.decode("utf-8", "replace"))
            elif program not in (ASSOCIATED_PROGRAM, SYSTEM_PROGRAM):
                others.append(str(program))
    except IndexError:
        raise ChainError("a transaction uses accounts that it doesn't list") from None
    return Parsed(
        signature=str(found.signatures[0]),
        blockhash=str(message.recent_blockhash),
        payer=keys[0],
        signers=tuple(keys[: message.header.num_required_signatures]),
        signed=all(found.verify_with_results()),
        ops=tuple(ops),
        memos=tuple(memos),
        others=tuple(others),
    )


def _token_op(data: bytes, accounts: tuple[str, ...]) -> TokenOp:
    name, has_amount = TOKEN_OPS.get(data[0] if data else -1, ("unknown", False))
    return TokenOp(name, accounts, int.from_bytes(data[1:9], "little") if has_amount else 0)
