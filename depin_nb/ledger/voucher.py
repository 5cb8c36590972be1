"""Vouchers: the hub's signed promise to a worker. Each replaces the one before it, so the newest says all that is owed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from depin_nb.core.codec import encode

from .wallet import Wallet, verify_signature

DOMAIN = b"depin-nb voucher v1\x00"


@dataclass(frozen=True)
class Voucher:
    """What one worker has earned in one run so far.

    `units`: DPN base units in all (not since the last). `sequence`: 1, 2, ..: the higher counts. `root`: Merkle root over this worker's
    receipts, in order. `signature`: ed25519 by the run's session key over everything else.
    """

    run_id: str
    worker_id: str
    wallet: str
    units: int
    sequence: int
    root: bytes
    signature: bytes = b""

    def message(self) -> bytes:
        """The bytes that are signed."""
        body = {name: value for name, value in self.to_dict().items() if name != "signature"}
        return DOMAIN + encode(dict(sorted(body.items())))

    def signed(self, session: Wallet) -> Voucher:
        return Voucher(self.run_id, self.worker_id, self.wallet, self.units, self.sequence, self.root, session.sign(self.message()))

    def verify(self, session_address: str) -> bool:
        """Whether the run's session key has signed this."""
        return verify_signature(session_address, self.message(), self.signature)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Voucher:
        return cls(**data)
