"""Whose turn it is: shares by weight between users and runs, strict classes with a floor; then on the real coordinator on a fake clock."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.amount import DPN, Amount, parse
from depin_nb.core.errors import BudgetExhausted, UsageError
from depin_nb.hub.leases.muster import KEPT_S
from depin_nb.hub.leases.shares import FLOOR, Claim, Shares, claim_of, fractions, portions
from depin_nb.metering import price

from .fleet import LOCAL, SOLO, SYNC, FakeWorker, Hub, Kernel, first_state, hub_in


def run(work):
    return asyncio.run(asyncio.wait_for(work, 300))


# --- the arithmetic ---------------------------------------------------------------------------------------

CLAIMS = st.dictionaries(
    st.integers(0, 30).map("r{}".format),
    st.builds(Claim, st.sampled_from("abc"), st.sampled_from([0.5, 1.0, 2.0, 5.0]), st.sampled_from(["high", "normal", "low"])),
    min_size=1,
    max_size=12,
)


def played(claims: dict[str, Claim], lengths: dict[str, float], until_s: float, workers: int = 1) -> Counter[str]:
    """Device-seconds that each run was lent up to `until_s`, where all want any worker at any time. `lengths`: of a run's leases."""
    shares, used = Shares(), Counter(dict.fromkeys(claims, 0.0))
    shares.set(claims)
    at_s, out, idle, number = 0.0, [], workers, 0
    while at_s < until_s:
        while idle:
            run_id = shares.next(claims)
            number, idle = number + 1, idle - 1
            heapq.heappush(out, (at_s + lengths[run_id], number, run_id, shares.lent(run_id, 1.0)))
        at_s, _, run_id, charge = heapq.heappop(out)
        shares.ended(charge, lengths[run_id])
        used[run_id] += lengths[run_id]
        idle += 1
    return used


@settings(max_examples=60, deadline=None)
@given(CLAIMS, st.data(), st.sampled_from([1, 3, 5]))
def test_each_gets_its_part_whatever_its_leases_take(claims: dict[str, Claim], data: st.DataObject, workers: int):
    lengths = {run_id: data.draw(st.sampled_from([0.25, 1.0, 3.0]), run_id) for run_id in claims}
    used, due = played(claims, lengths, 2000.0, workers), fractions(claims)
    whole = sum(used.values())
    assert sum(due.values()) == pytest.approx(1.0)
    for run_id in claims:
        # off by a few leases of its own and of those that it shares with at each level, never by more with time
        assert abs(used[run_id] - due[run_id] * whole) <= 3 * (workers + 3) * max(lengths.values()), (run_id, claims[run_id])


@settings(max_examples=60, deadline=None)
@given(CLAIMS)
def test_none_waits_for_ever(claims: dict[str, Claim]):
    shares, waited = Shares(), Counter[str]()
    shares.set(claims)
    due = fractions(claims)
    for _ in range(3000):
        chosen = shares.next(claims)
        shares.ended(shares.lent(chosen, 1.0), 1.0)
        for run_id in claims:
            waited[run_id] = 0 if run_id == chosen else waited[run_id] + 1
            assert waited[run_id] <= 2 / due[run_id] + 3 * len(claims)


def test_a_users_two_runs_share_that_users_part():
    claims = {"a1": Claim("a"), "a2": Claim("a"), "b1": Claim("b")}
    assert fractions(claims) == pytest.approx({"a1": 0.25, "a2": 0.25, "b1": 0.5})
    assert fractions({**claims, "b1": Claim("b", 3.0)}) == pytest.approx({"a1": 0.125, "a2": 0.125, "b1": 0.75})


def test_classes_are_strict_but_for_a_floor():
    claims = {"h": Claim("a", priority="high"), "n": Claim("b", 100.0), "l": Claim("c", priority="low")}
    assert fractions(claims) == pytest.approx({"h": 1 - 2 * FLOOR, "n": FLOOR, "l": FLOOR})
    assert fractions({"l": claims["l"]}) == {"l": 1.0}


def test_a_newcomer_has_nothing_saved_up_and_nothing_to_make_up_for():
    shares = Shares()
    claims = {"old": Claim("a")}
    shares.set(claims)
    for _ in range(100):
        shares.ended(shares.lent("old", 1.0), 1.0)
    claims["new"] = Claim("b")
    shares.set(claims)
    order = []
    for _ in range(10):
        order.append(shares.next(claims))
        shares.ended(shares.lent(order[-1], 1.0), 1.0)
    assert Counter(order) == {"old": 5, "new": 5}
    shares.set({"new": claims["new"]})
    shares.ended(shares.lent("new", 500.0), 500.0)
    shares.set(claims)
    assert shares.next(claims) in claims  # who comes back begins where the others stand
    shares.ended(shares.lent("old", 1.0), 1.0)


def test_what_one_run_cannot_use_goes_to_the_others():
    due = {"a": 0.25, "b": 0.25, "c": 0.5}
    assert portions(due, {}, 8) == pytest.approx({"a": 2, "b": 2, "c": 4})
    assert portions(due, {"a": 1}, 7) == pytest.approx({"a": 1, "b": 2, "c": 4})
    assert portions(due, dict.fromkeys(due, 1), 9) == {"a": 1, "b": 1, "c": 1}
    assert portions({"a": 1.0}, {"a": 2}, 0) == {"a": 0}


@pytest.mark.parametrize(
    "said", [{"weight": 0}, {"weight": 1e9}, {"weight": float("nan")}, {"weight": "2"}, {"weight": True}, {"priority": "top"}, {"size": 1}]
)
def test_a_share_that_cannot_be_is_refused(said):
    with pytest.raises(UsageError):
        claim_of(said)


def test_a_user_is_a_short_text():
    assert claim_of({"user": "x" * 999}).user == "x" * 64
    assert claim_of({"user": 5, "weight": 2}) == Claim("", 2.0)
    assert claim_of(None) == Claim()


# --- on the coordinator -----------------------------------------------------------------------------------


class Room:
    """Runs on a few workers by hand: each lease takes one second of a fake clock. `used`: leases by run."""

    def __init__(self, hub: Hub, workers: int) -> None:
        self.hub = hub
        self.workers = [FakeWorker(hub, f"w{i}") for i in range(workers)]
        for worker in self.workers:
            facts = {"name": worker.name, "speed": 1.0, "simulated": True, "backend": "depin"}
            worker.ops.join(worker.address, "phone", worker.wallet, facts)
        self.used: Counter[str] = Counter()
        self.idle_s = 0

    async def second(self) -> None:
        """Each worker asks, and hands in a second later what it was given."""
        from depin_nb.core.lease import Lease

        asking = [asyncio.ensure_future(w.ops.lease(w.address, 60)) for w in self.workers]
        for _ in range(20):
            await asyncio.sleep(0)
        self.hub.coordinator.tick()
        self.hub.clock.at_s += 1.0
        given = []
        for worker, call in zip(self.workers, asking, strict=True):
            if call.done():
                given.append((worker, Lease.from_dict(call.result()["lease"])))
            else:
                self.idle_s += 1
                call.cancel()
        await asyncio.gather(*(c for c in asking if not c.done()), return_exceptions=True)
        for worker, lease in given:
            self.used[lease.run_id] += 1
            report = {**worker.report(lease, first_state(), len(lease.units), ""), "seconds": 1.0}
            assert (await worker.ops.report(worker.address, report))["accepted"]
        for active in list(self.hub.coordinator.runs.values()):
            await self.hub.coordinator.commits.settled(active)

    async def opened(self, strategy, **share) -> Kernel:
        kernel = await Kernel.open(self.hub)
        run = self.hub.coordinator.runs[kernel.run_id]
        run.claim = claim_of(share)
        await kernel.enter(self.hub.spec(strategy, 4000), first_state())
        kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(4000)], True)
        return kernel


def test_a_class_of_thirty_shares_five_devices(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            room = Room(hub, 5)
            kernels = [await room.opened(SOLO, user=f"user-{i}") for i in range(30)]
            for _ in range(30):
                await room.second()
            found = [room.used[k.run_id] for k in kernels]
            assert sum(found) == 150
            assert room.idle_s == 0
            assert min(found) >= 4, "thirty runs, five devices, thirty seconds: five leases of a second each"
            assert max(found) <= 6
            homes = Counter(hub.coordinator.runs[k.run_id].entry.solo_worker for k in kernels)
            assert sorted(homes.values()) == [6] * 5

    run(main())


def test_weight_and_priority_hold_between_solo_runs_and_can_be_changed(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            room = Room(hub, 1)
            a = await room.opened(SOLO, user="a", weight=3)
            b = await room.opened(SOLO, user="b")
            low = await room.opened(SOLO, user="c", priority="low")
            for _ in range(80):
                await room.second()
            assert room.used[low.run_id] == pytest.approx(8, abs=2)
            assert room.used[a.run_id] == pytest.approx(54, abs=3)
            assert room.used[b.run_id] == pytest.approx(18, abs=3)
            status = (await hub.coordinator.shared.control(low.run_id, "share", {"weight": 1, "priority": "high"}))["status"]
            assert (status["user"], status["priority"]) == ("c", "high")
            room.used.clear()
            for _ in range(40):
                await room.second()
            assert room.used[low.run_id] == pytest.approx(36, abs=2)
            for wrong in ({}, {"weight": None}, {"weight": -1}, "high", {"user": "root"}):
                with pytest.raises(UsageError):
                    await hub.coordinator.shared.control(a.run_id, "share", wrong)

    run(main())


def test_a_small_run_is_not_starved_by_a_large_one(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            room = Room(hub, 4)
            large = await room.opened(LOCAL, user="a")
            for _ in range(3):
                await room.second()
            assert room.used[large.run_id] == 12
            small = [await room.opened(SOLO, user="b") for _ in range(3)]
            room.used.clear()
            for _ in range(40):
                await room.second()
            assert room.used[large.run_id] == pytest.approx(80, abs=12)
            found = [room.used[kernel.run_id] for kernel in small]
            assert sum(found) == pytest.approx(80, abs=12)
            assert min(found) >= 18, "one that works in order stays where its objects are: two of the three share one device"

    run(main())


def test_a_user_budget_holds_for_all_runs_together(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            hub.coordinator.purses = type(hub.coordinator.purses)(hub.coordinator, parse("$0.001"))
            cap = price.load().to_dpn(parse("$0.001"))
            room = Room(hub, 2)
            a, b = [await room.opened(SOLO, user="ada") for _ in range(2)]
            other = await room.opened(SOLO, user="ben")
            runs = hub.coordinator.runs
            for _ in range(60):
                await room.second()
                committed = runs[a.run_id].budget.committed + runs[b.run_id].budget.committed
                assert committed <= cap
                if all(runs[k.run_id].entry.halt for k in (a, b, other)):
                    break
            answer = await a.ops.results(a.run_id, a.entry, 4000, 0)
            assert answer["state"] == "budget"
            assert answer["error"]["type"] == "BudgetExhausted"
            assert "ada" in answer["error"]["message"]
            assert runs[other.run_id].budget.spent.units > 0
            with pytest.raises(BudgetExhausted, match="ada"):
                hub.coordinator.purses.reserve(runs[a.run_id], Amount(10**9, DPN))

    run(main())


@pytest.mark.parametrize("patient", [True, False])
def test_a_gang_meets_although_another_run_takes_each_device_as_it_gets_free(tmp_path: Path, patient: bool):
    async def main():
        async with hub_in(tmp_path) as hub:
            room = Room(hub, 3)
            gang = await room.opened(SYNC, user="g", weight=9)
            solo = await room.opened(SOLO, user="s")
            a, b, c = room.workers
            first = asyncio.ensure_future(a.ops.lease(a.address, 60))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not first.done(), "it is kept for the gang, which is due two"
            if not patient:
                hub.clock.at_s += KEPT_S + 1
                hub.coordinator.tick()
                assert (await first)["lease"]["size"] == 1, "it goes with those that there are"
                return
            second = await b.ops.lease(b.address, 60)
            assert (await first)["lease"]["run_id"] == second["lease"]["run_id"] == gang.run_id
            assert second["lease"]["size"] == 2
            assert (await c.ops.lease(c.address, 60))["lease"]["run_id"] == solo.run_id

    run(main())
