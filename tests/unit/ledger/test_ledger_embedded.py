import sqlite3
import threading

import pytest

from depin_nb.core.errors import ChainError
from depin_nb.ledger.embedded import BLOCKHASH_SLOTS, EmbeddedChain
from depin_nb.ledger.transaction import build, memo, parse
from depin_nb.ledger.wallet import Wallets


@pytest.fixture
def wallets(tmp_path):
    return Wallets(tmp_path / "wallets")


@pytest.fixture
def chain(tmp_path, wallets):
    made = EmbeddedChain(tmp_path / "chain.sqlite", wallets)
    made.provide(wallets.user().address, 100)
    yield made
    made.close()


def note(chain, wallets, text):
    return chain.send(build([memo(text)], wallets.user(), chain.latest_blockhash()))


def change(path, statement, *values):
    conn = sqlite3.connect(path)
    with conn:
        assert conn.execute(statement, values).rowcount == 1
    conn.close()


def test_it_is_labelled_simulated(chain):
    assert chain.simulated
    assert "simulated" in chain.name


def test_a_reader_without_keys_sees_the_same_and_can_follow(tmp_path, chain, wallets):
    first = note(chain, wallets, "one")
    reader = EmbeddedChain(tmp_path / "chain.sqlite")
    assert reader.transaction(first) == chain.transaction(first)
    second = note(chain, wallets, "two")
    assert reader.confirmed(second) is True
    assert reader.latest_blockhash() == chain.latest_blockhash()
    with pytest.raises(ChainError):
        reader.provide(wallets.user().address, 10**9)
    reader.close()


def test_a_reader_makes_no_chain(tmp_path):
    with pytest.raises(ChainError, match="no embedded chain"):
        EmbeddedChain(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


def test_two_processes_may_send(tmp_path, chain, wallets):
    other = EmbeddedChain(tmp_path / "chain.sqlite", wallets)
    sent = [note(one, wallets, f"{number}") for number in range(4) for one in (chain, other)]
    assert chain.signatures(wallets.user().address)[-8:] == sent
    assert other.signatures(wallets.user().address)[-8:] == sent
    other.close()


def test_any_thread_may_send(chain, wallets):
    sent = []
    threads = [threading.Thread(target=lambda n=n: sent.append(note(chain, wallets, f"{n}"))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(sent) == 4
    assert all(chain.confirmed(signature) for signature in sent)


def test_a_blockhash_lives_for_150_slots(chain, wallets):
    old = chain.latest_blockhash()
    signed = build([memo("late")], wallets.user(), old)
    chain.advance(BLOCKHASH_SLOTS - 1)
    assert not chain.expired(old)
    chain.advance(1)
    assert chain.expired(old)
    with pytest.raises(ChainError, match="blockhash"):
        chain.send(signed)
    assert chain.expired("11111111111111111111111111111111")


def test_bytes_that_landed_stay_confirmed_when_their_blockhash_is_old(chain, wallets):
    signed = build([memo("once")], wallets.user(), chain.latest_blockhash())
    signature = chain.send(signed)
    slots = len(chain.signatures(wallets.user().address))
    chain.advance(BLOCKHASH_SLOTS)
    assert chain.send(signed) == signature
    assert len(chain.signatures(wallets.user().address)) == slots


def test_what_was_written_before_a_crash_counts(tmp_path, chain, wallets, monkeypatch):
    """Killed between the commit and the effect: the replay has it, and sending again adds nothing."""
    signed = build([memo("crash")], wallets.user(), chain.latest_blockhash())

    def killed(self, found, signature, body):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedChain, "_run", killed)
        with pytest.raises(KeyboardInterrupt):
            chain.send(signed)
    again = EmbeddedChain(tmp_path / "chain.sqlite", wallets)
    signature = parse(signed).signature
    assert again.confirmed(signature) is True
    assert again.send(signed) == signature
    again.close()


def test_a_refusal_leaves_nothing_behind(tmp_path, chain, wallets):
    poor = wallets.named("poor")
    before = chain.latest_blockhash()
    with pytest.raises(ChainError) as caught:
        chain.send(build([memo("x")], poor, chain.latest_blockhash()))
    assert caught.value.signature
    assert chain.confirmed(caught.value.signature) is None
    assert chain.latest_blockhash() == before
    EmbeddedChain(tmp_path / "chain.sqlite").close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE slots SET signed = substr(signed, 1, length(signed) - 1) || x'00' WHERE slot = 3",
        "UPDATE slots SET signed = (SELECT signed FROM slots WHERE slot = 2) WHERE slot = 3",
        "UPDATE slots SET signature = 'x' WHERE slot = 3",
        "UPDATE slots SET blockhash = (SELECT blockhash FROM slots WHERE slot = 2) WHERE slot = 3",
        "DELETE FROM slots WHERE slot = 3",
        "UPDATE slots SET signed = NULL WHERE slot = 3",
        "UPDATE genesis SET body = replace(body, '000000', '000001')",
        "UPDATE genesis SET body = 'x'",
        "UPDATE genesis SET version = 2",
    ],
)
def test_a_changed_file_is_found_when_opened(tmp_path, chain, wallets, statement):
    for text in ("one", "two", "three"):
        note(chain, wallets, text)
    chain.close()
    change(tmp_path / "chain.sqlite", statement)
    with pytest.raises(ChainError):
        EmbeddedChain(tmp_path / "chain.sqlite")


def test_another_file_is_no_chain(tmp_path, wallets):
    (tmp_path / "chain.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ChainError, match="can't be"):
        EmbeddedChain(tmp_path / "chain.sqlite", wallets)


def test_a_lost_authority_is_told(tmp_path, chain):
    strange = EmbeddedChain(tmp_path / "chain.sqlite", Wallets(tmp_path / "others"))
    with pytest.raises(ChainError, match="authority"):
        strange.provide(Wallets(tmp_path / "others").user().address, 1)
    strange.close()


def test_addresses_are_checked(chain):
    with pytest.raises(ChainError, match="address"):
        chain.account("nonsense")
