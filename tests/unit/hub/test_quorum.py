"""Local merges don't wait for the slowest: what is late counts in a later merge, or is leased again when it is too old."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

import pytest

from depin_nb.core.lease import Lease
from depin_nb.training.strategy import MAX_STALENESS

from .fleet import LOCAL, Hub, Kernel, first_state, hub_in
from .test_doubling import Hand, pass_time


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


async def three(hub: Hub, total: int = 60):
    hands = [Hand(hub, name) for name in ("a", "b", "c")]
    kernel = await Kernel.open(hub)
    await kernel.enter(hub.spec(LOCAL, total), first_state())
    kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(total)], True)
    for hand in hands:
        await hand.ask()
    return hands, kernel, hub.coordinator.runs[kernel.run_id]


async def next_round(hub: Hub, active, *hands: Hand) -> list[Lease]:
    """Those hand in what they have, and get leases of the next version while somebody else is out."""
    for hand in hands:
        assert await hand.report(hand.held[0])
        await hand.ask()
    for _ in range(40):  # past the patience of a round, and of a member on its way back
        pass_time(hub, 0.25)
        await hub.coordinator.commits.settled(active)
        await asyncio.sleep(0)
        if all(hand.asking is None or hand.asking.done() for hand in hands):
            break
    return [lease for hand in hands if (lease := await hand.take()) is not None]


@pytest.mark.parametrize("missed", [1, MAX_STALENESS, MAX_STALENESS + 1])
def test_a_late_change_counts_in_a_later_merge_or_is_leased_again(tmp_path: Path, missed: int):
    async def main():
        async with hub_in(tmp_path) as hub:
            (a, b, c), kernel, active = await three(hub, 15 * (MAX_STALENESS + 4))
            late = await a.take()
            await b.take()
            await c.take()
            for version in range(1, missed + 1):
                leases = await next_round(hub, active, b, c)
                assert active.version == version, "nobody waits for a"
                assert {each.base_version for each in leases} == {version}
            assert await a.report(late) == (missed <= MAX_STALENESS)
            if missed > MAX_STALENESS:
                assert any({u.index for u in late.units} & {u.index for u in each.units} for each in leases), "leased again"
            for hand in (a, b, c):
                await hand.ask()
            while len(active.entry.merged) < active.entry.spec.total:
                for hand in (a, b, c):
                    await hand.take()
                    if hand.held:
                        await hand.report(hand.held[0])
                    await hand.ask()
                pass_time(hub, 0.25)
                await hub.coordinator.commits.settled(active)
            for hand in (a, b, c):
                hand.stop()
            state = await kernel.close()
            assert kernel.counted() == list(range(active.entry.spec.total if active.entry else 15 * (MAX_STALENESS + 4)))
            assert int(state.tensors["bn/n"]) == len(kernel.counted())
            assert active.budget.reserved.units == 0

    run(main())


def test_the_last_merge_has_everything(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            (a, b, c), kernel, active = await three(hub, 15)
            late = await a.take()
            for hand in (b, c):
                await hand.take()
                assert await hand.report(hand.held[0])
            pass_time(hub, 3)
            await hub.coordinator.commits.settled(active)
            assert active.version == 0, "nothing else is to be done: it waits"
            assert await a.report(late)
            await hub.coordinator.commits.settled(active)
            assert active.version == 1
            await kernel.close()
            assert kernel.counted() == list(range(15))

    run(main())


def test_a_newcomer_works_for_the_merge_in_progress(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            hands, kernel, active = await three(hub)
            for hand in hands:
                lease = await hand.take()
                member = hub.coordinator.members[hand.worker.address]
                member.rates[kernel.run_id], member.overheads[kernel.run_id] = 1.0, 0.0
                member.ratios[kernel.run_id] = deque([1.0])
                await hand.report(lease)
                await hand.ask()
            pass_time(hub, 0.25)
            await hub.coordinator.commits.settled(active)
            for hand in hands:
                assert await hand.take() is not None
            longest_s = max(r.pace.expected_s for r in active.entry.round.records)
            new = Hand(hub, "new")
            await new.ask()
            lease = await new.take()
            assert lease is not None
            assert lease.base_version == active.version
            assert active.entry.record(lease.lease_id).pace.expected_s <= longest_s, "done when the others are"
            for hand in (*hands, new):
                hand.stop()

    run(main())
