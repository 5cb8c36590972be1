import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.errors import ChainError, NoSuchRun, SettlementError, WalletError
from depin_nb.ledger import store
from depin_nb.ledger.embedded import BLOCKHASH_SLOTS
from depin_nb.ledger.ledger import OPEN_BUDGET_UNITS
from depin_nb.ledger.receipt import leaf_hash, merkle_root
from depin_nb.ledger.settlement import next_batch
from depin_nb.ledger.transaction import MAX_BYTES, parse
from depin_nb.ledger.verify import verify_run

BUDGET = 10**9


def check_paid(bench, run_id, owed, budget=BUDGET):
    result = bench.ledger.settle(run_id)
    assert result.paid == dict(owed)
    assert {wallet: bench.held(wallet) for wallet in owed} == dict(owed)
    assert result.refunded == budget - sum(owed.values())
    report = verify_run(run_id, bench.conn, bench.chain)
    assert report.ok, report.problems
    assert result.signatures == tuple(bench.chain.signatures(bench.ledger.vault(run_id)))
    return result


def test_a_run_from_its_opening_to_the_refund(bench, receipts):
    opened = bench.ledger.open_run("run-1", BUDGET)
    assert bench.ledger.open_run("run-1", BUDGET) == opened
    mine, owed = receipts("run-1", workers=5, each=3)
    voucher = bench.record(*mine)
    assert voucher.units == owed[mine[-1].wallet]
    assert voucher.sequence == 3
    assert bench.ledger.accrued("run-1") == {f"w{n}": owed[mine[n].wallet] for n in range(5)}
    assert bench.ledger.unsettled() == ["run-1"]
    assert bench.ledger.result("run-1") is None
    result = check_paid(bench, "run-1", owed)
    assert bench.ledger.settle("run-1") == result == bench.ledger.result("run-1")
    assert bench.ledger.unsettled() == []
    assert result.receipts == 15
    assert result.simulated
    assert bench.held(bench.wallets.user().address) == result.refunded
    assert bench.chain.account(bench.ledger.vault("run-1")) is None
    root = merkle_root([leaf_hash(body) for body in store.receipt_bodies(bench.conn, "run-1")]).hex()
    assert result.merkle_root == root
    memos = [parse(bench.chain.transaction(signature)).memos for signature in result.signatures]
    assert memos == [("depin:run-1:open",)] + [(f"depin:run-1:{root}",)] * (len(memos) - 1)


def test_a_receipt_counts_once_and_only_as_it_was(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    (one,), owed = receipts("run-1", workers=1, each=1)
    first = bench.record(one)
    assert bench.record(one) == first
    with pytest.raises(SettlementError, match="another receipt"):
        bench.record(replace(one, units_dpn=5))
    assert bench.ledger.accrued("run-1") == {"w0": owed[one.wallet]}


def test_a_receipt_is_true_only_when_the_caller_commits(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    (one,), _ = receipts("run-1", workers=1, each=1)
    bench.conn.execute("BEGIN IMMEDIATE")
    bench.ledger.record(bench.conn, one)
    bench.conn.execute("ROLLBACK")
    assert bench.ledger.accrued("run-1") == {}
    assert store.receipts(bench.conn, "run-1") == []
    bench.record(one)
    assert store.receipts(bench.conn, "run-1") == [one]


def test_what_is_settled_takes_no_more(bench, receipts):
    mine, _ = receipts("run-1", workers=2)
    with pytest.raises(SettlementError, match="not opened"):
        bench.record(mine[0])
    with pytest.raises(NoSuchRun):
        bench.ledger.settle("run-1")
    bench.ledger.open_run("run-1", BUDGET)
    with pytest.raises(WalletError):
        bench.record(replace(mine[0], wallet="me"))
    bench.record(mine[0])
    check_paid(bench, "run-1", {mine[0].wallet: mine[0].units_dpn})
    with pytest.raises(SettlementError, match="settled"):
        bench.record(mine[1])
    with pytest.raises(SettlementError):
        bench.ledger.raise_budget("run-1", 2 * BUDGET)


def test_free_work_is_receipted_and_the_root_still_lands_on_the_chain(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    mine, _ = receipts("run-1", workers=2)
    bench.record(*[replace(one, units_dpn=0) for one in mine])
    result = check_paid(bench, "run-1", {})
    assert len(result.signatures) == 2  # open and close
    assert result.merkle_root in parse(bench.chain.transaction(result.signatures[-1])).memos[0]


def test_runs_side_by_side_and_workers_paid_before(bench, receipts):
    for run_id in ("run-1", "run-2"):
        bench.ledger.open_run(run_id, BUDGET)
    mine, owed = receipts("run-1", workers=20)
    bench.record(*mine, *[replace(one, run_id="run-2") for one in mine])
    check_paid(bench, "run-1", owed)
    second = bench.ledger.settle("run-2")
    assert {wallet: bench.held(wallet) for wallet in owed} == {wallet: 2 * units for wallet, units in owed.items()}
    assert len(second.signatures) < len(bench.ledger.result("run-1").signatures)  # their token accounts are there now
    assert verify_run("run-2", bench.conn, bench.chain).ok


def test_workers_that_share_a_wallet_are_paid_together(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    mine, owed = receipts("run-1", workers=2)
    wallet = mine[0].wallet
    bench.record(*[replace(one, wallet=wallet) for one in mine])
    check_paid(bench, "run-1", {wallet: sum(owed.values())})
    (row,) = verify_run("run-1", bench.conn, bench.chain).rows
    assert row.worker_id == "w0, w1"


def test_a_run_without_a_budget_is_topped_up_when_due(bench, receipts):
    bench.ledger.open_run("run-1", None)
    mine, owed = receipts("run-1", workers=3, units=OPEN_BUDGET_UNITS)
    bench.record(*mine)
    result = check_paid(bench, "run-1", owed, budget=sum(owed.values()))
    assert result.refunded == 0


def test_a_capped_run_never_pays_beyond_its_cap(bench, receipts):
    bench.ledger.open_run("run-1", 1_000)
    mine, _ = receipts("run-1", workers=2)
    bench.record(*mine)
    with pytest.raises(SettlementError, match="owes"):
        bench.ledger.settle("run-1")
    assert all(bench.held(one.wallet) == 0 for one in mine)


def test_a_budget_can_be_raised_never_lowered(bench, receipts):
    bench.ledger.open_run("run-1", 1_000)
    assert bench.ledger.raise_budget("run-1", 1_000) is None
    assert bench.ledger.raise_budget("run-1", 500) is None
    assert bench.chain.confirmed(bench.ledger.raise_budget("run-1", BUDGET // 2)) is True
    assert bench.ledger.raise_budget("run-1", BUDGET)
    mine, owed = receipts("run-1", workers=2)
    bench.record(*mine)
    check_paid(bench, "run-1", owed)


def test_a_budget_of_zero(bench):
    bench.ledger.open_run("run-1", 0)
    check_paid(bench, "run-1", {}, budget=0)


def test_a_long_run_id_still_opens_a_vault(bench, receipts):
    run_id = "run-" + "x" * 60
    bench.ledger.open_run(run_id, BUDGET)
    mine, owed = receipts(run_id, workers=9)
    bench.record(*mine)
    check_paid(bench, run_id, owed)


def test_lost_wallets_are_told_and_nothing_is_paid(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    mine, _ = receipts("run-1", workers=1)
    bench.record(*mine)
    bench.wallets.path("user").unlink()
    bench.open()
    with pytest.raises(SettlementError, match="other wallets"):
        bench.ledger.settle("run-1")


def test_resume_says_what_failed_and_goes_on(bench, receipts, killed):
    for run_id in ("run-1", "run-2"):
        bench.ledger.open_run(run_id, BUDGET)
        bench.record(*receipts(run_id, workers=1)[0])
        bench.at = stop_at(killed, "planned")
        with pytest.raises(killed):
            bench.ledger.settle(run_id)
        bench.at = lambda point: None
    bench.wallets.path("session-run-1").unlink()
    bench.open()
    found = bench.ledger.resume()
    assert isinstance(found["run-1"], SettlementError)
    assert found["run-2"] == bench.ledger.result("run-2")
    assert list(bench.ledger.resume()) == ["run-1"]


# --- killed anywhere --------------------------------------------------------------------------------


def stop_at(killed, wanted=None, nth=1):
    """Dies at the nth time that the hub passes that point, or any."""
    count = 0

    def at(point):
        nonlocal count
        count += wanted in (point, None)
        if wanted in (point, None) and count == nth:
            raise killed(point)

    return at


def life(bench, mine):
    """A hub's work on one run, from wherever it stands."""
    bench.ledger.open_run("run-1", BUDGET // 2)
    if bench.ledger.unsettled():
        row = store.run(bench.conn, "run-1")
        if row.state == store.OPEN:
            bench.record(*mine)
            bench.ledger.raise_budget("run-1", BUDGET)
    return bench.ledger.settle("run-1")


def test_killed_at_any_one_point_pays_exactly_once(new_bench, receipts, killed):
    """Every point that a run passes, each in a run of its own: a new process goes on from the files."""
    seen = []
    for nth in range(1, 100):
        bench = new_bench()
        mine, owed = receipts("run-1", workers=10, each=1)
        bench.at = stop_at(killed, nth=nth)
        try:
            life(bench, mine)
        except killed as death:
            seen.append(str(death))
        else:
            break
        bench.at = lambda point: None
        bench.open()
        life(bench, mine)
        check_paid(bench, "run-1", owed)
    steps = ["open", f"fund-{BUDGET // 2}-{BUDGET}", "pay-1", "pay-2", "close"]
    moments = [f"{step}: {moment}" for step in steps for moment in ("signed", "sent", "confirmed")]
    assert seen == ["open: written", *moments[:6], "planned", *moments[6:], "settled"]


class Flaky:
    """The real chain behind a bad line: a call or its answer gets lost, or the bytes arrive much later than the error."""

    def __init__(self, chain, dice, late, killed):
        self._chain = chain
        self._dice = dice
        self._late = late
        self._killed = killed

    def __getattr__(self, name):
        return getattr(self._chain, name)

    def send(self, signed):
        fate = self._dice.choice(["fine"] * 6 + ["before", "after", "error", "late"])
        if fate == "before":
            raise self._killed("before")
        if fate == "late":
            self._late.append(signed)
            raise ChainError("no answer", signature="", logs=[])
        signature = self._chain.send(signed)
        if fate == "after":
            raise self._killed("after")
        if fate == "error":
            raise ChainError("the answer was lost", signature=signature, logs=[])
        return signature

    def confirmed(self, signature):
        status = self._chain.confirmed(signature)
        if self._late and self._dice.random() < 0.5:  # what was on its way lands just after one had asked
            self.land()
        return status

    def land(self):
        for signed in self._late:
            with contextlib.suppress(ChainError):  # too late
                self._chain.send(signed)
        self._late.clear()


@pytest.mark.parametrize("seed", range(32))
def test_random_deaths_lost_answers_late_landings_and_expiry_pay_exactly_once(bench, receipts, killed, seed):
    dice = random.Random(seed)
    mine, owed = receipts("run-1", workers=dice.randint(1, 18), each=dice.randint(1, 3))
    late = []

    def at(point):
        if dice.random() < 0.1:
            raise killed(point)

    for _ in range(200):
        bench.at = at
        bench.ledger._chain = Flaky(bench.chain, dice, late, killed)
        try:
            life(bench, mine)
            break
        except (killed, ChainError):
            bench.at = lambda point: None
            bench.open()
            if dice.random() < 0.3:
                bench.chain.advance(BLOCKHASH_SLOTS)
    else:
        pytest.fail("it never got through")
    bench.ledger._chain.land()
    bench.open()
    bench.at = lambda point: None
    check_paid(bench, "run-1", owed)


def test_new_bytes_are_signed_only_after_expiry(bench, receipts, killed):
    bench.ledger.open_run("run-1", BUDGET)
    mine, owed = receipts("run-1", workers=2)
    bench.record(*mine)
    bench.at = stop_at(killed, "pay-1: signed")
    with pytest.raises(killed):
        bench.ledger.settle("run-1")
    bench.at = lambda point: None
    first = store.newest_sent(bench.conn, "run-1", "pay-1")
    assert first.state == store.WRITTEN
    bench.open()
    bench.chain.advance(BLOCKHASH_SLOTS)
    check_paid(bench, "run-1", owed)
    second = store.newest_sent(bench.conn, "run-1", "pay-1")
    assert second.signature != first.signature
    assert bench.chain.confirmed(first.signature) is None
    assert [row.signature for row in store.sent(bench.conn, "run-1", store.EXPIRED)] == [first.signature]


def test_landed_bytes_are_not_signed_again_however_old(bench, receipts, killed):
    bench.ledger.open_run("run-1", BUDGET)
    mine, owed = receipts("run-1", workers=2)
    bench.record(*mine)
    bench.at = stop_at(killed, "pay-1: sent")
    with pytest.raises(killed):
        bench.ledger.settle("run-1")
    bench.at = lambda point: None
    bench.open()
    bench.chain.advance(BLOCKHASH_SLOTS)
    check_paid(bench, "run-1", owed)
    assert store.sent(bench.conn, "run-1", store.EXPIRED) == []


def test_every_transaction_fits_a_packet(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    mine, owed = receipts("run-1", workers=60, each=1)
    bench.record(*mine)
    result = check_paid(bench, "run-1", owed)
    sizes = [len(bench.chain.transaction(signature)) for signature in result.signatures]
    assert max(sizes) <= MAX_BYTES
    assert len(sizes) == 2 + -(-60 // 8)  # eight new workers a transaction, as measured


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(9, 60))
def test_batches_take_everything_in_order_and_fit(sizes, room):
    waiting = [(f"w{n}", size) for n, size in enumerate(sizes)]
    batches = []
    rest = waiting
    while rest:
        batch = next_batch(rest, lambda part: sum(size for _, size in part) <= room)
        assert batch
        assert sum(size for _, size in batch) <= room
        batches += batch
        rest = rest[len(batch) :]
    assert batches == waiting


def test_a_payout_that_never_fits_is_an_error():
    with pytest.raises(SettlementError):
        next_batch([("w", 1)], lambda part: not part)
    assert next_batch([], lambda part: True) == ()


def test_the_tables_can_be_made_within_the_callers_transaction(tmp_path):
    conn = sqlite3.connect(tmp_path / "x.sqlite")  # in the module's legacy transaction mode, as a caller may have it
    conn.execute("BEGIN")
    store.create_tables(conn)
    store.create_tables(conn)
    assert conn.in_transaction
    conn.rollback()
    assert conn.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,)
    conn.close()


def test_vouchers_grow_with_each_receipt(bench, receipts):
    bench.ledger.open_run("run-1", BUDGET)
    mine, _ = receipts("run-1", workers=1, each=4)
    session = bench.wallets.session("run-1").address
    total = Counter()
    for number, one in enumerate(mine, 1):
        voucher = bench.record(one)
        total[one.wallet] += one.units_dpn
        assert (voucher.units, voucher.sequence) == (total[one.wallet], number)
        assert voucher.root == merkle_root([receipt.leaf() for receipt in mine[:number]])
        assert voucher.verify(session)


DYING_HUB = """
import os, signal, sys
from pathlib import Path
from depin_nb.ledger import store
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.ledger.ledger import Ledger
from depin_nb.ledger.wallet import Wallets

folder, point = Path(sys.argv[1]), sys.argv[2]
wallets = Wallets(folder / "wallets")
at = lambda here: os.kill(os.getpid(), signal.SIGKILL) if here == point else None
Ledger(lambda: store.connect(folder / "journal.sqlite"), EmbeddedChain(folder / "chain.sqlite", wallets), wallets, at=at).settle("run-1")
"""


def test_a_process_that_is_really_killed(bench, receipts):
    """SIGKILL at one point after the other, then this process resumes."""
    bench.ledger.open_run("run-1", BUDGET)
    mine, owed = receipts("run-1", workers=10, each=1)
    bench.record(*mine)
    bench.close()
    for point in ("pay-1: signed", "pay-1: sent", "pay-2: sent", "close: sent"):
        dead = subprocess.run([sys.executable, "-c", DYING_HUB, str(bench.folder), point], timeout=60, capture_output=True)
        assert dead.returncode == -signal.SIGKILL, dead.stderr
    bench.open()
    assert list(bench.ledger.resume()) == ["run-1"]
    check_paid(bench, "run-1", owed)


def test_how_many_known_workers_fit_a_transaction(bench, receipts):
    mine, _ = receipts("run-1", workers=30, each=1)
    for run_id in ("run-1", "run-2"):
        bench.ledger.open_run(run_id, BUDGET)
        bench.record(*[replace(one, run_id=run_id) for one in mine])
        result = bench.ledger.settle(run_id)
    assert len(result.signatures) == 2 + 30 // 15
