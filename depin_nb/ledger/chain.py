"""What the ledger asks of a chain beyond `ports.Chain`: a mint, rent, expiry and the list of transactions of an address."""

from __future__ import annotations

from typing import Protocol

from depin_nb.ports import Chain


class LedgerChain(Chain, Protocol):
    """A chain that runs can be settled on. Addresses and signatures are base58."""

    @property
    def mint(self) -> str:
        """The address of the SPL mint that is paid out."""
        ...

    @property
    def decimals(self) -> int: ...

    def expired(self, blockhash: str) -> bool:
        """Whether a transaction with that blockhash can never be accepted any more."""
        ...

    def rent(self, size_bytes: int) -> int:
        """Lamports that keep an account of that size alive."""
        ...

    def signatures(self, address: str) -> list[str]:
        """The transactions that name an address, oldest first."""
        ...

    def provide(self, owner: str, units: int) -> None:
        """Sees to it that `owner` has that many base units and lamports for fees, where tokens cost nothing; else raises ChainError."""
        ...
