import copy
import json
import os
import pickle
import stat
import threading
import traceback

import pytest

from depin_nb.core.errors import WalletError
from depin_nb.ledger.wallet import Wallet, Wallets, is_address, load, verify_signature


@pytest.fixture
def wallets(tmp_path):
    return Wallets(tmp_path / "wallets")


def secret_of(wallets, name):
    return json.loads(wallets.path(name).read_text())


def test_a_wallet_is_made_once_in_the_solana_clis_form_for_this_user_only(wallets):
    wallet = wallets.user()
    assert wallets.user() == wallet
    numbers = secret_of(wallets, "user")
    assert len(numbers) == 64
    assert bytes(numbers[32:]) == bytes(wallet.pubkey)
    assert stat.S_IMODE(wallets.path("user").stat().st_mode) == 0o600
    assert stat.S_IMODE(wallets.folder.stat().st_mode) == 0o700
    assert [path.name for path in wallets.folder.iterdir()] == ["user.json"]


def test_each_name_has_a_file_of_its_own(wallets):
    names = ["phone-1 (simulated)", "phone-1 -simulated-", "../../etc/x", "a/b", "", "ü", "a" * 200]
    found = {wallets.device(name).address for name in names}
    assert len(found) == len(names)
    assert all(path.parent == wallets.folder for path in wallets.folder.rglob("*.json"))
    assert wallets.device("phone-1 (simulated)") == wallets.device("phone-1 (simulated)")


def test_the_secret_never_shows(wallets):
    wallet = wallets.user()
    secret = bytes(secret_of(wallets, "user"))
    from solders.keypair import Keypair

    shown = str(Keypair.from_bytes(secret))  # what solders itself would print
    for text in (repr(wallet), str(wallet), f"{wallet}", f"{[wallet]}", f"{wallet!r:>10}"):
        assert shown not in text
        assert wallet.address in text
    assert not hasattr(wallet, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_does_not_pickle(wallets, protocol):
    with pytest.raises(WalletError):
        pickle.dumps({"deep": [wallets.user()]}, protocol)


def test_it_does_not_copy_or_cloudpickle(wallets):
    import cloudpickle

    for attempt in (copy.copy, copy.deepcopy, cloudpickle.dumps):
        with pytest.raises(WalletError):
            attempt(wallets.user())


def test_it_signs_and_anyone_can_check(wallets):
    wallet = wallets.user()
    signature = wallet.sign(b"message")
    assert verify_signature(wallet.address, b"message", signature)
    assert not verify_signature(wallet.address, b"massage", signature)
    assert not verify_signature(Wallet.new().address, b"message", signature)
    assert not verify_signature("no address", b"message", signature)
    assert not verify_signature(wallet.address, b"message", b"short")


def test_addresses_are_told_from_other_text():
    assert is_address(Wallet.new().address)
    for text in ("", "me", "0" * 44, "1" * 31, Wallet.new().address + "1"):
        assert not is_address(text)


@pytest.mark.parametrize("content", ["", "[]", "[1, 2]", json.dumps([0] * 64), json.dumps([1.5] * 64), "{}", "\x00"])
def test_a_broken_file_is_told_without_its_content(wallets, content):
    path = wallets.path("user")
    path.parent.mkdir(mode=0o700)
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(WalletError, match="not a Solana key file"):
        wallets.user()


def test_an_almost_good_key_does_not_leak_into_the_traceback(wallets):
    wallets.user()
    numbers = secret_of(wallets, "user")
    numbers[40] ^= 1  # the public half no longer fits
    path = wallets.path("user")
    path.write_text(json.dumps(numbers))
    with pytest.raises(WalletError) as caught:
        load(path)
    text = "".join(traceback.format_exception(caught.value))
    assert str(numbers[:8])[1:-1] not in text
    assert caught.value.__cause__ is None


def test_a_file_that_others_can_read_is_refused(wallets):
    wallets.user()
    os.chmod(wallets.path("user"), 0o644)
    with pytest.raises(WalletError, match="other users") as caught:
        wallets.user()
    assert "chmod 600" in caught.value.hint


def test_a_missing_file_and_an_unwritable_folder(tmp_path):
    with pytest.raises(WalletError, match="can't be read"):
        load(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(WalletError, match="can't be written"):
        Wallets(tmp_path / "file").user()


def test_two_makers_at_once_agree(wallets):
    found, start = [], threading.Barrier(4)

    def make():
        start.wait(10)
        found.append(wallets.user().address)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4
    assert len(set(found)) == 1
