"""The chain conformance suite on every implementation there is."""

from pathlib import Path

import pytest

from depin_nb.ledger.embedded import BLOCKHASH_SLOTS, EmbeddedChain
from depin_nb.ledger.wallet import Wallets
from depin_nb.testing.conformance_chain import ChainConformance


class TestEmbedded(ChainConformance):
    @pytest.fixture(autouse=True)
    def _closing(self):
        self.made = []
        yield
        for chain in self.made:
            chain.close()

    def make(self, folder: Path, wallets: Wallets) -> EmbeddedChain:
        chain = EmbeddedChain(folder / "chain.sqlite", wallets)
        self.made.append(chain)
        return chain

    def expire(self, chain: EmbeddedChain) -> bool:
        chain.advance(BLOCKHASH_SLOTS)
        return True
