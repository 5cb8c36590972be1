"""What every Chain must do before runs are settled on it. Subclass `ChainConformance` in a test and say how to make the chain.

Needs pytest. The checks use the ledger's own vault and wallets, so an implementation is tried with the transactions it will be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solders.pubkey import Pubkey
from spl.token.instructions import close_account
from spl.token.models import CloseAccountParams

from depin_nb.core.errors import ChainError
from depin_nb.ledger.chain import LedgerChain
from depin_nb.ledger.transaction import MAX_BYTES, TOKEN_PROGRAM, build, memo, signature_of
from depin_nb.ledger.vault import ACCOUNT_BYTES, Vault, held_units, token_account
from depin_nb.ledger.wallet import Wallet, Wallets

UNITS = 1_000_000
ROOT = bytes(32)
UNKNOWN = "5VERv8NMvzbJMEkV8xnrLkEaWRtSz9CosKDYjCJjBRnbJLgp8uirBgmQpjKhoR4tjF3ZpRzrFmBV6UjKdiSZkQUW"


class ChainConformance:
    """Tests of one LedgerChain. Override `make`; and `expire` where the chain can let a blockhash grow old."""

    def make(self, folder: Path, wallets: Wallets) -> LedgerChain:
        """A chain that lives in `folder`; called again it must show the same accounts."""
        raise NotImplementedError

    def expire(self, chain: Any) -> bool:
        """Lets today's blockhashes expire; False when that can't be done here."""
        del chain
        return False

    @pytest.fixture
    def wallets(self, tmp_path: Path) -> Wallets:
        return Wallets(tmp_path / "wallets")

    @pytest.fixture
    def chain(self, tmp_path: Path, wallets: Wallets) -> LedgerChain:
        return self.make(tmp_path, wallets)

    @pytest.fixture
    def vault(self, chain: LedgerChain, wallets: Wallets) -> Vault:
        """A vault of UNITS, open on the chain."""
        user = wallets.user()
        vault = Vault("run-conform", user.address, wallets.session("run-conform").address, chain.mint, chain.decimals)
        chain.provide(user.address, UNITS)
        chain.send(build(vault.open(UNITS, chain.rent(ACCOUNT_BYTES)), user, chain.latest_blockhash()))
        return vault

    def payment(self, chain: LedgerChain, wallets: Wallets, vault: Vault, to: str, units: int, key: Wallet | None = None) -> bytes:
        missing = frozenset([to]) if chain.account(token_account(to, chain.mint)) is None else frozenset[str]()
        session = key if key is not None else wallets.session(vault.run_id)
        return build(vault.pay([(to, units)], missing, ROOT), wallets.user(), chain.latest_blockhash(), session)

    def held(self, chain: LedgerChain, owner: str) -> int:
        account = chain.account(token_account(owner, chain.mint))
        return held_units(account) if account is not None else 0

    def test_it_says_what_it_is(self, chain: LedgerChain) -> None:
        assert chain.name
        assert chain.simulated == ("simulated" in chain.name)

    def test_the_unknown_is_none(self, chain: LedgerChain) -> None:
        assert chain.confirmed(UNKNOWN) is None
        assert chain.transaction(UNKNOWN) is None
        assert chain.account(Wallet.new().address) is None
        assert chain.signatures(Wallet.new().address) == []

    def test_a_payment_arrives_and_is_kept_byte_for_byte(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        worker = Wallet.new()
        signed = self.payment(chain, wallets, vault, worker.address, 42)
        signature = chain.send(signed)
        assert signature == signature_of(signed)
        assert chain.confirmed(signature) is True
        assert chain.transaction(signature) == signed
        assert self.held(chain, worker.address) == 42
        assert chain.signatures(vault.address)[-1] == signature

    def test_the_same_bytes_pay_once(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        worker = Wallet.new()
        signed = self.payment(chain, wallets, vault, worker.address, 42)
        assert len({chain.send(signed) for _ in range(3)}) == 1
        assert self.held(chain, worker.address) == 42

    def test_it_outlives_its_process(self, tmp_path: Path, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        worker = Wallet.new()
        signed = self.payment(chain, wallets, vault, worker.address, 42)
        signature = chain.send(signed)
        again = self.make(tmp_path, wallets)
        assert again.mint == chain.mint
        assert again.confirmed(signature) is True
        assert again.transaction(signature) == signed
        again.send(signed)
        assert self.held(again, worker.address) == 42
        assert again.signatures(vault.address) == chain.signatures(vault.address)

    def test_the_cap_holds_against_the_session_key(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        worker = Wallet.new()
        with pytest.raises(ChainError):
            chain.send(self.payment(chain, wallets, vault, worker.address, UNITS + 1))
        chain.send(self.payment(chain, wallets, vault, worker.address, UNITS - 1))
        with pytest.raises(ChainError):
            chain.send(self.payment(chain, wallets, vault, worker.address, 2))
        assert self.held(chain, worker.address) == UNITS - 1

    def test_a_strange_key_gets_nothing(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        thief = Wallet.new()
        stolen = Vault(vault.run_id, vault.user, thief.address, vault.mint, vault.decimals)
        signed = build(stolen.pay([(thief.address, 1)], frozenset([thief.address]), ROOT), wallets.user(), chain.latest_blockhash(), thief)
        with pytest.raises(ChainError):
            chain.send(signed)
        assert chain.confirmed(signature_of(signed)) is not True
        assert self.held(chain, thief.address) == 0

    def test_a_changed_transaction_is_refused(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        worker = Wallet.new()
        signed = bytearray(self.payment(chain, wallets, vault, worker.address, 42))
        at = bytes(signed).index((42).to_bytes(8, "little"))
        signed[at] = 43
        with pytest.raises(ChainError):
            chain.send(bytes(signed))
        assert self.held(chain, worker.address) == 0

    @pytest.mark.parametrize("junk", [b"", b"\xff" * 40, bytes(300), bytes(MAX_BYTES + 1)])
    def test_junk_is_refused(self, chain: LedgerChain, junk: bytes) -> None:
        with pytest.raises(ChainError):
            chain.send(junk)

    def test_an_expired_blockhash_is_refused(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        worker = Wallet.new()
        signed = self.payment(chain, wallets, vault, worker.address, 42)
        blockhash = chain.latest_blockhash()
        assert not chain.expired(blockhash)
        if not self.expire(chain):
            pytest.skip("this chain's time can't be driven")
        assert chain.expired(blockhash)
        with pytest.raises(ChainError):
            chain.send(signed)
        assert chain.confirmed(signature_of(signed)) is None

    def test_closing_gives_the_rest_back(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        chain.send(self.payment(chain, wallets, vault, Wallet.new().address, 100))
        chain.send(build(vault.close(UNITS - 100, ROOT), wallets.user(), chain.latest_blockhash()))
        assert chain.account(vault.address) is None
        assert self.held(chain, vault.user) == UNITS - 100

    def test_the_session_key_closes_nothing(self, chain: LedgerChain, wallets: Wallets, vault: Vault) -> None:
        session, address = wallets.session(vault.run_id), Pubkey.from_string(vault.address)
        chain.provide(session.address, 0)
        chain.send(self.payment(chain, wallets, vault, Wallet.new().address, UNITS))
        theft = CloseAccountParams(program_id=TOKEN_PROGRAM, account=address, dest=session.pubkey, owner=session.pubkey)
        with pytest.raises(ChainError):
            chain.send(build([close_account(theft)], session, chain.latest_blockhash()))
        assert chain.account(vault.address) is not None
        chain.send(build(vault.close(0, ROOT), wallets.user(), chain.latest_blockhash()))
        assert chain.account(vault.address) is None

    def test_memos_need_no_signer(self, chain: LedgerChain, wallets: Wallets) -> None:
        chain.provide(wallets.user().address, 0)
        signed = build([memo("depin:hello")], wallets.user(), chain.latest_blockhash())
        assert chain.confirmed(chain.send(signed)) is True
