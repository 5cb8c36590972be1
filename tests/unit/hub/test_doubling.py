"""Leases given twice, for silent devices within seconds: the first valid report counts. And whatever happens, every unit counts once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depin_nb.core.errors import HubError
from depin_nb.core.lease import Lease
from depin_nb.core.state import State
from depin_nb.hub.leases.rounds import SILENT_S
from depin_nb.ledger import store

from .fleet import LOCAL, FakeWorker, Hub, Kernel, first_state, hub_in


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


class Hand:
    """A worker that does what the test says, one call at a time."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.worker = hub, FakeWorker(hub, name)
        self.held: list[Lease] = []
        self.asking: asyncio.Task | None = None
        self.join()

    @property
    def ops(self):
        return self.hub.coordinator.workers

    def join(self) -> None:
        facts = {"name": self.worker.name, "speed": 1.0, "simulated": True, "backend": "depin"}
        self.ops.join(self.worker.address, self.worker.profile, self.worker.wallet, facts)

    async def ask(self) -> None:
        """Leaves a question at the hub; `take` gets the answer."""
        if self.asking is None:
            held = [each.lease_id for each in self.held]
            self.asking = asyncio.ensure_future(self.ops.lease(self.worker.address, 60, held))
            await asyncio.sleep(0)

    async def take(self) -> Lease | None:
        for _ in range(3):
            await asyncio.sleep(0)
        if self.asking is None or not self.asking.done():
            return None
        answer, self.asking = self.asking.result(), None
        if "lease" in answer:
            self.held.append(Lease.from_dict(answer["lease"]))
            return self.held[-1]
        return None

    def alive(self) -> list[str]:
        """Those of its leases that aren't wanted any more."""
        dropped = self.ops.alive(self.worker.address, "", [each.lease_id for each in self.held])["drop"]
        self.held = [each for each in self.held if each.lease_id not in dropped]
        return dropped

    async def report(self, lease: Lease, *, garbage: bool = False) -> bool:
        try:
            base = State.from_bytes((await self.ops.version(self.worker.address, lease.run_id, lease.base_version))["state"])
        except HubError:  # it isn't kept any more: the report is refused anyway
            base = first_state()
        report = self.worker.report(lease, base, len(lease.units), "")
        if garbage:
            report["change"] = b"\x80garbage"
        self.held = [each for each in self.held if each is not lease]
        return (await self.ops.report(self.worker.address, report))["accepted"]

    def stop(self) -> None:
        if self.asking is not None:
            self.asking.cancel()


async def two(hub: Hub, total: int = 10):
    hands = [Hand(hub, name) for name in ("a", "b")]
    kernel = await Kernel.open(hub)
    await kernel.enter(hub.spec(LOCAL, total), first_state())
    kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(total)], True)
    for hand in hands:
        await hand.ask()
    return *hands, kernel


def pass_time(hub: Hub, seconds: float, *chatty: Hand) -> None:
    for _ in range(round(seconds / 0.25)):
        hub.clock.at_s += 0.25
        for hand in chatty:
            hand.alive()
        hub.coordinator.tick()


def test_a_silent_devices_lease_goes_to_an_idle_one_within_three_seconds(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            a, b, kernel = await two(hub)
            first, second = await a.take(), await b.take()
            a.alive()  # chatty, and never heard of again
            assert await b.report(second)
            await b.ask()
            pass_time(hub, SILENT_S - 0.5)
            assert await b.take() is None
            pass_time(hub, 1.0)
            again = await b.take()
            assert [u.index for u in again.units] == [u.index for u in first.units]
            assert a.worker.address in hub.coordinator.members, "it isn't thrown out"
            assert await b.report(again)
            assert not await a.report(first), "the other one was first"
            await hub.coordinator.commits.settled(hub.coordinator.runs[kernel.run_id])
            await kernel.close()
            assert kernel.counted() == list(range(10))
            status = await kernel.finish()
            assert Counter(state for _, state, _ in hub.journal.leases(kernel.run_id)) == {"paid": 2, "cancelled": 1}
            assert status["tokens_paid"] == status["tokens_accrued"]

    run(main())


def test_a_device_that_wakes_up_first_counts_and_the_duplicate_is_told_to_stop(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            a, b, kernel = await two(hub)
            first, second = await a.take(), await b.take()
            a.alive()
            assert await b.report(second)
            await b.ask()
            pass_time(hub, 3)
            again = await b.take()
            assert await a.report(first)
            assert b.alive() == [again.lease_id]
            await kernel.close()
            assert kernel.counted() == list(range(10))
            assert hub.coordinator.runs[kernel.run_id].budget.reserved.units == 0

    run(main())


def test_both_lost_is_leased_again_and_a_refused_duplicate_leaves_the_first(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            a, b, kernel = await two(hub)
            first, second = await a.take(), await b.take()
            a.alive()
            assert await b.report(second)
            await b.ask()
            pass_time(hub, 3)
            again = await b.take()
            assert not await b.report(again, garbage=True)
            entry = hub.coordinator.runs[kernel.run_id].entry
            assert entry.open_units == 0, "the first one has them still"
            await b.ask()
            pass_time(hub, 0.5)
            third = await b.take()
            assert [u.index for u in third.units] == [u.index for u in first.units], "and it is doubled again"
            hub.coordinator.worker_lost(a.worker.address)
            assert entry.open_units == 0
            assert await b.report(third)
            await kernel.close()
            assert kernel.counted() == list(range(10))

    run(main())


def test_a_hub_that_was_held_up_suspects_nobody(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            a, b, _ = await two(hub)
            await a.take()
            second = await b.take()
            a.alive()
            assert await b.report(second)
            await b.ask()
            hub.clock.at_s += 8.0
            hub.coordinator.tick()
            assert await b.take() is None
            b.stop()

    run(main())


def test_a_late_device_is_welcome_as_long_as_nobody_has_its_units(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            a, b, kernel = await two(hub)
            first, second = await a.take(), await b.take()
            hub.clock.at_s += 200
            active = hub.coordinator.runs[kernel.run_id]
            active.seen_s += 200
            hub.coordinator.tick()
            assert active.entry.open_units == 10, "both were taken away"
            assert await a.report(first), "nobody has its units"
            await hub.coordinator.commits.settled(active)
            assert not await a.report(first), "once"
            assert await b.report(second), "a merge late"
            await hub.coordinator.commits.settled(active)
            assert active.version == 2
            await kernel.close()
            assert kernel.counted() == list(range(10))

    run(main())


MOVES = ("ask", "report", "garbage", "alive", "die", "join", "drop", "time", "sleep")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 2)), max_size=60))
def test_whatever_happens_every_unit_is_in_the_model_once_and_nothing_leaks(tmp_path_factory, moves):
    async def main():
        total = 24
        async with hub_in(tmp_path_factory.mktemp("hub")) as hub:
            kernel = await Kernel.open(hub, budget="$5")
            await kernel.enter(hub.spec(LOCAL, total), first_state())
            kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(total)], True)
            hands = [Hand(hub, f"w{i}") for i in range(3)]
            active = hub.coordinator.runs[kernel.run_id]
            old: list[tuple[Hand, Lease]] = []
            for move, which in moves:
                hand = hands[which]
                await hand.take()
                if move == "ask":
                    await hand.ask()
                elif move in ("report", "garbage") and hand.held:
                    lease = hand.held[0]
                    old.append((hand, lease))
                    await hand.report(lease, garbage=move == "garbage")
                elif move == "alive":
                    hand.alive()
                elif move == "die":
                    hub.coordinator.worker_lost(hand.worker.address)
                    hand.stop()
                    hand.held, hand.asking = [], None
                elif move == "join" and hand.worker.address not in hub.coordinator.members:
                    hand.join()
                elif move == "drop":
                    old += [(hand, each) for each in hand.held]
                    hand.held = []
                elif move == "time":
                    pass_time(hub, 3, *hands[:which])
                elif move == "sleep":
                    hub.clock.at_s += 60
                    active.seen_s = hub.clock.at_s
                    hub.coordinator.tick()
                if active.entry.halt:
                    break
            for hand, lease in old[-6:]:  # late answers, and answers given twice
                if hand.worker.address in hub.coordinator.members:
                    await hand.report(lease)
            helper = Hand(hub, "helper")
            for hand in hands:
                hub.coordinator.worker_lost(hand.worker.address)
                hand.stop()
            while len(active.entry.merged) < total and not active.entry.halt:
                await helper.ask()
                if (lease := await helper.take()) is not None:
                    await helper.report(lease)
                await hub.coordinator.commits.settled(active)
            await hub.coordinator.commits.settled(active)
            merged = sorted(active.entry.merged)
            helper.stop()
            state = await kernel.close("interrupt")
            assert kernel.counted() == merged
            assert int(state.tensors["bn/n"]) == len(merged)
            assert active.budget.reserved.units == 0
            status = await kernel.finish()
            receipts = store.receipts(hub.journal.connection, kernel.run_id)
            assert sum(r.units_dpn for r in receipts) == status["tokens_accrued"]["units"]
            assert sorted(i for r in receipts if r.version >= 0 for i in range(r.first, r.first + r.count)) == merged
            assert all(not m.held for m in hub.coordinator.members.values())

    run(main())
