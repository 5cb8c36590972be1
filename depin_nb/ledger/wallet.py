"""Wallets: ed25519 keys in the Solana CLI's `id.json` form, each in a file that its user alone may read.

Keys never show: not in reprs, not in tracebacks, not in pickles (solders' own Keypair prints and pickles its secret, so it stays inside).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, NoReturn

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from depin_nb.core import config
from depin_nb.core.errors import WalletError


class Wallet:
    """A key that signs, and its public address. Made by `Wallets`, or `Wallet.new()` for one that is never stored."""

    __slots__ = ("_keypair", "name")

    def __init__(self, keypair: Keypair, name: str = "") -> None:
        self._keypair = keypair
        self.name = name

    @classmethod
    def new(cls, name: str = "") -> Wallet:
        return cls(Keypair(), name)

    @property
    def pubkey(self) -> Pubkey:
        return self._keypair.pubkey()

    @property
    def address(self) -> str:
        """The public key in base58: what others need in order to pay it."""
        return str(self._keypair.pubkey())

    def sign(self, message: bytes) -> bytes:
        """The ed25519 signature (64 bytes) of `message`."""
        return bytes(self._keypair.sign_message(message))

    def __repr__(self) -> str:
        return f"Wallet({self.address}{f', {self.name!r}' if self.name else ''}, secret not shown)"

    def __reduce__(self) -> NoReturn:
        raise WalletError("a wallet can't be pickled or copied", hint="Send its address instead; the key stays where it is.")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__reduce__()

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__reduce__()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wallet) and self.pubkey == other.pubkey

    def __hash__(self) -> int:
        return hash(self.pubkey)


def verify_signature(address: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `message` by the key of that base58 address. False for anything malformed."""
    try:
        return bool(Signature.from_bytes(signature).verify(Pubkey.from_string(address), message))
    except ValueError:
        return False


def is_address(text: str) -> bool:
    """Whether `text` is a base58 ed25519 public key."""
    try:
        return bool(Pubkey.from_string(text).is_on_curve())
    except ValueError:
        return False


class Wallets:
    """The wallets in a folder (default: `config.wallets_dir()`), one file each, made when first asked for."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else config.wallets_dir()

    def user(self) -> Wallet:
        """The notebook user's own wallet: owns the runs' vaults, pays fees, gets the rest back."""
        return self.named("user")

    def authority(self) -> Wallet:
        """The embedded chain's mint authority and faucet."""
        return self.named("mint-authority")

    def device(self, name: str) -> Wallet:
        """A device's own wallet, the same one for the same name."""
        return self.named(f"device-{name}")

    def session(self, run_id: str) -> Wallet:
        """A run's session key: signs vouchers, and may spend from that run's vault up to its budget."""
        return self.named(f"session-{run_id}")

    def path(self, name: str) -> Path:
        """The file of that wallet. Names with other characters than letters, digits, `.`, `_`, `-` get a file name of their own."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
        if plain != name:
            from hashlib import sha256

            plain = f"{plain}-{sha256(name.encode()).hexdigest()[:8]}"
        return self.folder / f"{plain}.json"

    def named(self, name: str) -> Wallet:
        """Loads that wallet, or makes it. Raises WalletError when its file can't be used."""
        path = self.path(name)
        if not path.exists():
            self._create(path)
        return load(path, name)

    def _create(self, path: Path) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(list(bytes(Keypair())), file)
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                    os.link(draft, path)
                _sync_folder(self.folder)
            finally:
                draft.unlink()
        except OSError as error:
            raise WalletError(f"the wallet {path.name} can't be written: {error.strerror}", hint=f"Check {self.folder}.") from None


def load(path: Path, name: str = "") -> Wallet:
    """The wallet in a Solana CLI `id.json` file. Raises WalletError if it is missing, malformed, or readable by other users."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise WalletError(f"the wallet {path.name} is open to other users", hint=f"chmod 600 {path}")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise WalletError(f"the wallet {path.name} can't be read: {type(error).__name__}", hint=f"Check {path}.") from None
    secret = _secret(text)
    keypair = None
    if secret is not None:
        with contextlib.suppress(ValueError):
            keypair = Keypair.from_bytes(secret)
    if keypair is None:
        raise WalletError(
            f"the wallet {path.name} is not a Solana key file", hint="Expected: a JSON list of 64 numbers (Solana CLI id.json)."
        )
    return Wallet(keypair, name or path.stem)


def _secret(text: str) -> bytes | None:
    try:
        numbers = json.loads(text)
    except ValueError:
        return None
    if not isinstance(numbers, list) or len(numbers) != 64 or not all(type(n) is int and 0 <= n < 256 for n in numbers):
        return None
    return bytes(numbers)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
