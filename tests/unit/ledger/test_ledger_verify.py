"""Every single thing that could be changed afterwards is changed, and must be reported."""

import sqlite3
from dataclasses import replace

import pytest
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer

from depin_nb.core.errors import ChainError, NoSuchRun
from depin_nb.ledger import store
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.ledger.receipt import Receipt, leaf_hash, merkle_root
from depin_nb.ledger.transaction import build
from depin_nb.ledger.vault import Vault
from depin_nb.ledger.verify import verify_run
from depin_nb.ledger.wallet import Wallet

BUDGET = 10**9


@pytest.fixture
def settled(bench, receipts):
    """A bench with one settled run of 6 workers with 2 receipts each, paid in one transaction."""
    bench.ledger.open_run("run-1", BUDGET)
    mine, bench.owed = receipts("run-1", workers=6)
    bench.record(*mine)
    bench.result = bench.ledger.settle("run-1")
    return bench


def report(bench):
    return verify_run("run-1", bench.conn, bench.chain)


def edit_receipt(bench, position, **changes):
    (body,) = bench.conn.execute("SELECT body FROM ledger_receipts WHERE position = ?", (position,)).fetchone()
    changed = replace(Receipt.from_bytes(body), **changes)
    bench.conn.execute("UPDATE ledger_receipts SET body = ? WHERE position = ?", (changed.to_bytes(), position))


def test_an_honest_run_verifies_also_without_keys_in_another_process(settled):
    settled.close()
    chain = EmbeddedChain(settled.folder / "chain.sqlite")
    conn = store.connect(settled.folder / "journal.sqlite", read_only=True)
    found = verify_run("run-1", conn, chain)
    conn.close()
    chain.close()
    assert found.ok
    assert found.problems == ()
    assert found.simulated
    assert found.merkle_root == settled.result.merkle_root
    assert found.refunded == settled.result.refunded
    assert {row.wallet: row.units_by_chain for row in found.rows} == dict(settled.owed)
    assert all(row.receipts == 2 and row.units_by_receipts == row.units_by_chain and len(row.signatures) == 1 for row in found.rows)
    assert found.to_dict()["rows"][0]["worker_id"] == "w0"


def test_an_unknown_run_and_a_database_without_a_ledger(settled):
    with pytest.raises(NoSuchRun):
        verify_run("run-9", settled.conn, settled.chain)
    empty = sqlite3.connect(":memory:")
    with pytest.raises(NoSuchRun):
        verify_run("run-1", empty, settled.chain)
    empty.close()


def test_a_run_that_is_not_settled_says_so(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    bench.record(*receipts("run-1", workers=1)[0])
    found = report(bench)
    assert not found.ok
    assert any("not settled" in problem for problem in found.problems)


@pytest.mark.parametrize(
    "changes",
    [
        {"units_dpn": 1_001},
        {"flops": 1},
        {"samples": 1},
        {"first": 1},
        {"count": 5},
        {"entry": 1},
        {"version": 7},
        {"at_ms": 0},
        {"worker_id": "w9"},
        {"lease_id": "other"},
        {"run_id": "run-2"},
        {"wallet": Wallet.new().address},
    ],
)
def test_any_field_of_one_receipt(settled, changes):
    edit_receipt(settled, 1, **changes)
    found = report(settled)
    assert not found.ok
    assert any("Merkle root" in problem for problem in found.problems)


JOURNAL = [
    "DELETE FROM ledger_receipts WHERE position = 3",
    "UPDATE ledger_receipts SET body = x'00' WHERE position = 3",
    "UPDATE ledger_receipts SET body = (SELECT body FROM ledger_receipts WHERE position = 2) WHERE position = 3",
    "UPDATE ledger_receipts SET position = 99 WHERE position = 1",
    "UPDATE ledger_vouchers SET units = units + 1 WHERE worker_id = 'w0'",
    "UPDATE ledger_vouchers SET sequence = 9 WHERE worker_id = 'w0'",
    "UPDATE ledger_vouchers SET root = zeroblob(32) WHERE worker_id = 'w0'",
    "UPDATE ledger_vouchers SET signature = zeroblob(64) WHERE worker_id = 'w0'",
    "DELETE FROM ledger_vouchers WHERE worker_id = 'w0'",
    "UPDATE ledger_payouts SET units = units + 1 WHERE rowid = 1",
    "DELETE FROM ledger_payouts WHERE rowid = 1",
    "UPDATE ledger_runs SET root = zeroblob(32)",
    "UPDATE ledger_runs SET refunded = refunded - 1",
    "UPDATE ledger_runs SET state = 'open'",
    "UPDATE ledger_runs SET mint = user",
    "UPDATE ledger_runs SET user = session",
    "UPDATE ledger_runs SET session = user",
    "DELETE FROM ledger_transactions WHERE step = 'pay-1'",
    "UPDATE ledger_transactions SET signature = 'x' WHERE step = 'pay-1'",
]


@pytest.mark.parametrize("statement", JOURNAL)
def test_any_change_in_the_journal(settled, statement):
    assert settled.conn.execute(statement).rowcount >= 1
    found = report(settled)
    assert not found.ok
    assert found.problems


def test_a_journal_rewritten_throughout_still_differs_from_the_chain(settled):
    """One receipt raised, and everything in the journal that hangs on it made to fit, by someone who has the session key."""
    edit_receipt(settled, 1, units_dpn=5_000)
    first = Receipt.from_bytes(store.receipt_bodies(settled.conn, "run-1")[0])
    mine = [one for one in store.receipts(settled.conn, "run-1") if one.wallet == first.wallet]
    voucher, frontier = store.voucher(settled.conn, "run-1", first.worker_id, first.wallet)
    total = sum(one.units_dpn for one in mine)
    forged = replace(voucher, units=total, root=merkle_root([one.leaf() for one in mine])).signed(settled.wallets.session("run-1"))
    store.put_voucher(settled.conn, forged, frontier)
    root = merkle_root([leaf_hash(body) for body in store.receipt_bodies(settled.conn, "run-1")])
    store.set_root(settled.conn, "run-1", root)
    settled.conn.execute("UPDATE ledger_payouts SET units = ? WHERE wallet = ?", (total, first.wallet))
    problems = report(settled).problems
    assert any("memo" in problem for problem in problems)
    assert any("the chain says" in problem for problem in problems)
    assert len([problem for problem in problems if "receipts say" in problem]) == 1


class Liar:
    """A chain that answers with other bytes for one transaction, or leaves one out."""

    def __init__(self, chain, signature, body=None, hide=False):
        self._chain, self._signature, self._body, self._hide = chain, signature, body, hide

    def __getattr__(self, name):
        return getattr(self._chain, name)

    def transaction(self, signature):
        return self._body if signature == self._signature else self._chain.transaction(signature)

    def signatures(self, address):
        return [one for one in self._chain.signatures(address) if not (self._hide and one == self._signature)]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_any_byte_of_any_transaction(settled, step):
    signature = settled.result.signatures[step]
    honest = settled.chain.transaction(signature)
    for at in range(0, len(honest), 7):
        body = bytes([*honest[:at], honest[at] ^ 1, *honest[at + 1 :]])
        assert not verify_run("run-1", settled.conn, Liar(settled.chain, signature, body)).ok, at


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_transaction_that_is_missing(settled, step):
    signature = settled.result.signatures[step]
    assert not verify_run("run-1", settled.conn, Liar(settled.chain, signature)).ok
    assert not verify_run("run-1", settled.conn, Liar(settled.chain, signature, hide=True)).ok


def test_an_amount_changed_on_the_chains_disk(settled):
    settled.chain.close()
    conn = sqlite3.connect(settled.folder / "chain.sqlite")
    slot, signed = conn.execute("SELECT slot, signed FROM slots WHERE signature = ?", (settled.result.signatures[1],)).fetchone()
    units = next(iter(settled.owed.values())).to_bytes(8, "little")
    assert units in signed
    with conn:
        conn.execute("UPDATE slots SET signed = ? WHERE slot = ?", (signed.replace(units, (9_999).to_bytes(8, "little")), slot))
    conn.close()
    with pytest.raises(ChainError, match="changed"):
        EmbeddedChain(settled.folder / "chain.sqlite")


def test_a_chain_cut_off_at_the_end(settled):
    settled.chain.close()
    conn = sqlite3.connect(settled.folder / "chain.sqlite")
    with conn:
        conn.execute("DELETE FROM slots WHERE slot = (SELECT MAX(slot) FROM slots)")
    conn.close()
    settled.chain = EmbeddedChain(settled.folder / "chain.sqlite")
    problems = report(settled).problems
    assert any("doesn't have the journal's transaction" in problem for problem in problems)
    assert any("not closed" in problem for problem in problems)


def test_a_payment_behind_the_journals_back(bench, receipts):
    """The session key pays a friend from the vault, in a transaction that the journal doesn't know."""
    bench.ledger.open_run("run-1", BUDGET)
    mine, _ = receipts("run-1", workers=2)
    bench.record(*mine)
    friend, user = Wallet.new().address, bench.wallets.user()
    vault = Vault("run-1", user.address, bench.wallets.session("run-1").address, bench.chain.mint, bench.chain.decimals)
    theft = vault.pay([(friend, 7)], frozenset([friend]), bytes(32))
    bench.chain.send(build(theft, user, bench.chain.latest_blockhash(), bench.wallets.session("run-1")))
    bench.ledger.settle("run-1")
    problems = report(bench).problems
    assert any("no receipt names" in problem for problem in problems)
    assert any("journal doesn't have" in problem for problem in problems)
    assert any("memo" in problem for problem in problems)


def test_strangers_who_name_the_vault_change_nothing(bench, receipts):
    """Lamports sent to the vault by someone else are no reason to doubt the payouts."""
    bench.ledger.open_run("run-1", BUDGET)
    bench.record(*receipts("run-1", workers=2)[0])
    stranger, address = bench.wallets.named("stranger"), bench.ledger.vault("run-1")
    bench.chain.provide(stranger.address, 0)
    gift = transfer(TransferParams(from_pubkey=stranger.pubkey, to_pubkey=Pubkey.from_string(address), lamports=1))
    signature = bench.chain.send(build([gift], stranger, bench.chain.latest_blockhash()))
    bench.ledger.settle("run-1")
    assert signature in bench.chain.signatures(address)
    assert report(bench).ok
