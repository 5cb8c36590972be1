"""A worker that falls silent holds nothing up: one worker's loop goes elsewhere, a gang forms anew. Counted on virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from depin_nb.core.lease import StrategyConfig
from depin_nb.hub.leases.rounds import SILENT_S

from .fleet import SOLO, SYNC, Hub, Kernel, first_state, hub_in
from .test_doubling import Hand, pass_time

TOTAL = 12


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


async def begun(hub: Hub, strategy: StrategyConfig, *names: str):
    hands = [Hand(hub, name) for name in names]
    kernel = await Kernel.open(hub)
    await kernel.enter(hub.spec(strategy, TOTAL), first_state())
    feed(hub, kernel, 0)
    for hand in hands:
        await hand.ask()
    return hands, kernel, hub.coordinator.runs[kernel.run_id]


def feed(hub: Hub, kernel: Kernel, first: int) -> None:
    kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(first, TOTAL)], True)


def test_a_silent_solo_workers_loop_goes_to_an_idle_worker_from_the_last_merge(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            (a, b), kernel, active = await begun(hub, SOLO, "a", "b")
            mine, other = (a, b) if await a.take() else (b, a)
            await other.take()
            mine.held = mine.held[:1]
            assert await mine.report(mine.held[0])
            await hub.coordinator.commits.settled(active)
            await mine.ask()
            lease = await mine.take()
            assert lease is not None
            mine.alive()
            await mine.ask()  # for the one ahead: an open question is no sign of life
            pass_time(hub, SILENT_S)
            assert active.entry.halt == ""
            pass_time(hub, 0.5)
            assert active.entry.halt == "solo-lost"
            done = len(active.entry.merged)
            assert done == len(kernel.counted()) > 0
            first = kernel.entry
            await kernel.ops.entry_close(kernel.run_id, kernel.entry, "interrupt")
            await kernel.enter(hub.spec(SOLO, TOTAL, first=done), None)
            feed(hub, kernel, done)
            assert not await mine.report(lease), "it went elsewhere"
            while len(active.entry.merged) < TOTAL - done:
                await other.ask()
                await other.take()
                if other.held:
                    assert await other.report(other.held[0])
                pass_time(hub, 0.25)
                await hub.coordinator.commits.settled(active)
            for hand in (a, b):
                hand.stop()
            before = [i for i, _ in hub.journal.merged_units(kernel.run_id, first)]
            await kernel.close()
            assert before + kernel.counted() == list(range(TOTAL)), "each once"
            assert active.budget.reserved.units == 0

    run(main())


def test_nobody_else_is_there_so_a_silent_solo_worker_is_waited_for(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            (a,), _, active = await begun(hub, SOLO, "a")
            lease = await a.take()
            a.alive()
            pass_time(hub, 2 * SILENT_S)
            assert active.entry.halt == ""
            assert await a.report(lease)
            a.stop()

    run(main())


@pytest.mark.parametrize("others", [1, 2])
def test_a_gang_forms_anew_without_a_silent_member(tmp_path: Path, others: int):
    async def main():
        async with hub_in(tmp_path) as hub:
            (silent, *rest), kernel, active = await begun(hub, SYNC, *"abc"[: 1 + others])
            for hand in (silent, *rest):
                assert (await hand.take()).size == 1 + others
                hand.alive()
            pass_time(hub, SILENT_S, *rest)
            assert active.entry.round is not None
            pass_time(hub, 0.5, *rest)
            assert active.entry.round is None, "given up"
            for hand in rest:
                assert hand.alive() == []
                await hand.ask()
            pass_time(hub, 0.25, *rest)
            for hand in rest:
                assert (await hand.take()).size == others, "without it"
            status = hub.coordinator.status(active)
            assert any("is silent" in notice for notice in status.notices)
            for hand in (silent, *rest):
                hand.stop()
            await kernel.close("interrupt")
            assert active.budget.reserved.units == 0

    run(main())


def test_who_comes_back_from_a_silence_is_given_longer_next_time(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            (a, b), _, active = await begun(hub, SYNC, "a", "b")
            member = hub.coordinator.members[a.worker.address]
            for _ in range(2):
                allowed_s = member.patience_s
                for hand in (a, b):
                    await hand.ask()
                pass_time(hub, 0.25)
                assert await a.take() is not None
                assert await b.take() is not None
                a.alive()
                pass_time(hub, allowed_s, b)
                assert active.entry.round is not None
                pass_time(hub, 0.5, b)
                assert active.entry.round is None
                assert member.patience_s == 2 * allowed_s
                for hand in (a, b):
                    hand.alive()
            for hand in (a, b):
                hand.stop()

    run(main())
