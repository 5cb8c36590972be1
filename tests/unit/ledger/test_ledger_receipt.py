from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.codec import encode
from depin_nb.core.errors import CodecError
from depin_nb.ledger.receipt import Frontier, Receipt, leaf_hash, merkle_proof, merkle_root, merkle_verify
from depin_nb.ledger.voucher import Voucher
from depin_nb.ledger.wallet import Wallet

RECEIPT = Receipt("run-1", "lease-1", "phone-1", Wallet.new().address, 0, 8, 4, 128, 10**13, 1_500_000, 3, 1_762_000_000_000)


def slow_root(leaves):
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + slow_root(leaves[:split]) + slow_root(leaves[split:])).digest()


def leaves_of(count):
    return [leaf_hash(bytes([number])) for number in range(count)]


def test_a_receipt_survives_its_canonical_bytes():
    assert Receipt.from_bytes(RECEIPT.to_bytes()) == RECEIPT
    assert Receipt.from_dict(dict(reversed(RECEIPT.to_dict().items()))).to_bytes() == RECEIPT.to_bytes()


@pytest.mark.parametrize("field", list(RECEIPT.to_dict()))
def test_every_field_is_in_the_leaf(field):
    value = getattr(RECEIPT, field)
    other = replace(RECEIPT, **{field: value + 1 if isinstance(value, int) else value + "x"})
    assert other.leaf() != RECEIPT.leaf()


def test_other_bytes_are_refused():
    unsorted = encode(dict(reversed(RECEIPT.to_dict().items())))
    extra = encode(dict(sorted({**RECEIPT.to_dict(), "x": 1}.items())))
    for data in (b"", b"junk", encode(1), encode([1]), unsorted, extra, RECEIPT.to_bytes() + b"\0", encode("x" * 5000)):
        with pytest.raises(CodecError):
            Receipt.from_bytes(data)


@pytest.mark.parametrize("bad", [{"flops": 1.5}, {"units_dpn": True}, {"units_dpn": -1}, {"worker_id": b"x"}, {"count": None}])
def test_receipts_are_typed(bad):
    with pytest.raises(CodecError):
        replace(RECEIPT, **bad)


@pytest.mark.parametrize("count", range(34))
def test_root_and_proofs_follow_rfc_6962(count):
    leaves = leaves_of(count)
    root = merkle_root(leaves)
    assert root == slow_root(leaves)
    for index in range(count):
        proof = merkle_proof(leaves, index)
        assert merkle_verify(root, leaves[index], index, count, proof)
        assert not merkle_verify(root, leaf_hash(b"other"), index, count, proof)
        assert not merkle_verify(root, leaves[index], index, count, (*proof, proof[0] if proof else root))
        if count > 1:
            assert not merkle_verify(root, leaves[index], (index + 1) % count, count, proof)


def test_a_proof_outside_the_tree():
    with pytest.raises(IndexError):
        merkle_proof(leaves_of(3), 3)
    assert not merkle_verify(merkle_root(leaves_of(3)), leaves_of(3)[0], 3, 3, ())
    assert not merkle_verify(merkle_root([]), b"", 0, 0, ())


@given(st.lists(st.binary(max_size=4), max_size=40), st.integers(0, 39), st.binary(max_size=4))
def test_any_change_of_any_leaf_changes_the_root(bodies, at, other):
    leaves = [leaf_hash(body) for body in bodies]
    if at < len(bodies) and other != bodies[at]:
        changed = [*leaves[:at], leaf_hash(other), *leaves[at + 1 :]]
        assert merkle_root(changed) != merkle_root(leaves)
    assert merkle_root([*leaves, leaf_hash(other)]) != merkle_root(leaves)


def test_a_frontier_grows_as_the_tree_does_and_survives_bytes():
    frontier = Frontier()
    for count, leaf in enumerate(leaves_of(100), 1):
        frontier = Frontier.from_bytes(frontier.add(leaf).to_bytes())
        assert frontier.root() == slow_root(leaves_of(count))
    for data in (b"", frontier.to_bytes()[:-1], frontier.to_bytes() + bytes(32)):
        with pytest.raises(CodecError):
            Frontier.from_bytes(data)


def test_a_voucher_is_good_only_as_the_session_key_signed_it():
    session = Wallet.new()
    voucher = Voucher("run-1", "phone-1", RECEIPT.wallet, 10, 1, RECEIPT.leaf()).signed(session)
    assert voucher.verify(session.address)
    assert Voucher.from_dict(voucher.to_dict()).verify(session.address)
    assert not voucher.verify(Wallet.new().address)
    changes = {"run_id": "run-2", "worker_id": "b", "wallet": session.address, "units": 11, "sequence": 2, "root": bytes(32)}
    for name, value in changes.items():
        assert not replace(voucher, **{name: value}).verify(session.address), name
    assert not replace(voucher, signature=b"").verify(session.address)
