"""Loops that may be left early, with several workers: no iteration is merged before all earlier ones, whoever is lost when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from depin_nb.core.lease import Lease

from .fleet import LOCAL, FakeWorker, Hub, Kernel, first_state, hub_in, seeded


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def spec(hub: Hub, total: int, contiguous: bool = True):
    return replace(hub.spec(LOCAL, total), contiguous=contiguous)


def prefixes(kernel: Kernel) -> bool:
    """Whether each merge went on gapless from the one before: in loop order, the versions that hold the iterations never go back."""
    versions = [lease["version"] for answer in kernel.answers for lease in answer["leases"]]
    return bool(versions) and versions == sorted(versions)


def leaving_at(index: int, how: str = "break"):
    def plan(lease: Lease) -> tuple[int, str]:
        units = [u.index for u in lease.units]
        return (units.index(index) + 1, how) if index in units else (len(units), "")

    return plan


async def until(condition) -> None:
    """Lets the hub's other tasks run until something holds; the test's own limit ends it."""
    while not condition():
        await asyncio.sleep(0.001)


def first_lost(lost: list[str]):
    """The first member that is given the loop's beginning dies of it, once."""

    def act(lease: Lease) -> str | None:
        if lease.first == 0 and not lost:
            lost.append(lease.lease_id)
            return "die"
        return None

    return act


@pytest.mark.parametrize("how", ["break", "return", "error"])
def test_an_exit_in_a_chunk_that_was_lost_first(tmp_path: Path, how: str):
    async def main():
        async with hub_in(tmp_path) as hub:
            lost: list[str] = []
            for i in range(3):
                FakeWorker(hub, f"w{i}", act=first_lost(lost), plan=leaving_at(3, how)).start()
            kernel = await Kernel.open(hub)
            await kernel.enter(spec(hub, 60), first_state())
            assert await kernel.loop(60) == how
            state = await kernel.close("exit")
            assert lost
            assert kernel.indices() == list(range(4)) == kernel.counted()
            assert int(state.tensors["bn/n"]) == 4, "nothing beyond the exit is in the weights"

    run(main())


def test_the_others_do_what_a_lost_one_left_before_anything_later_is_merged(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            lost: list[str] = []
            fleet = [FakeWorker(hub, f"w{i}", act=first_lost(lost)).start() for i in range(3)]
            kernel = await Kernel.open(hub)
            await kernel.enter(spec(hub, 60), first_state())
            assert await kernel.loop(60) == "running"
            await kernel.close()
            assert lost
            assert kernel.indices() == list(range(60)) == kernel.counted()
            assert prefixes(kernel)
            again = next(each for w in fleet for each in w.leases if each.first == 0 and each.lease_id not in lost)
            assert again.base_version == 0, "it was done in the round that it belonged to"

    run(main())


def test_without_anybody_left_what_was_done_behind_a_gap_is_paid_and_done_again(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            early = FakeWorker(hub, "early", act=lambda lease: "hang" if lease.first == 0 else None).start()
            late = FakeWorker(hub, "late", act=lambda lease: "hang" if lease.first == 0 else None, plan=leaving_at(7)).start()
            kernel = await Kernel.open(hub)
            await kernel.enter(spec(hub, 30), first_state())
            playing = asyncio.ensure_future(kernel.loop(30))
            await until(lambda: early.leases and late.leases)
            first, second = (early, late) if early.leases[0].first == 0 else (late, early)
            coordinator = hub.coordinator
            entry = coordinator.runs[kernel.run_id].entry
            await until(lambda: entry.rounds and entry.rounds[0].accepted)
            second.task.cancel()
            coordinator.worker_lost(second.address)
            first.task.cancel()
            coordinator.worker_lost(first.address)
            await until(lambda: not entry.rounds)
            assert entry.merged == set()
            assert entry.exit_at is None, "an exit behind a gap doesn't count"
            assert coordinator.runs[kernel.run_id].budget.spent.units > 0, "what was done is paid"
            FakeWorker(hub, "third").start()
            assert await playing == "running"
            await kernel.close()
            assert kernel.indices() == list(range(30)) == kernel.counted()
            assert prefixes(kernel)

    run(main())


@pytest.mark.parametrize("seed", range(4))
def test_prefixes_whatever_dies(tmp_path: Path, seed: int):
    async def main():
        async with hub_in(tmp_path) as hub:
            born: list[FakeWorker] = []
            troubled: asyncio.Queue[tuple[FakeWorker, str]] = asyncio.Queue()

            def spawn() -> None:
                born.append(FakeWorker(hub, f"w{len(born)}", act=seeded(seed * 100 + len(born), 0.3, ("die", "garbage"))))
                born[-1].plan = leaving_at(77)
                born[-1].troubled = troubled
                born[-1].start()

            async def replace_the_lost() -> None:
                while True:
                    await troubled.get()
                    spawn()

            for _ in range(3):
                spawn()
            replacing = asyncio.ensure_future(replace_the_lost())
            kernel = await Kernel.open(hub)
            await kernel.enter(spec(hub, 120), first_state())
            assert await kernel.loop(120) == "break"
            replacing.cancel()
            state = await kernel.close("exit")
            assert kernel.indices() == list(range(78)) == kernel.counted()
            assert prefixes(kernel)
            assert int(state.tensors["bn/n"]) == 78
            assert hub.coordinator.runs[kernel.run_id].budget.reserved.units == 0

    run(main())


def test_of_several_errors_the_earliest_is_told_once(tmp_path: Path):
    """Also for a loop that nothing in the text leaves: an error may come anywhere."""

    async def main():
        async with hub_in(tmp_path) as hub:
            lost: list[str] = []

            def plan(lease: Lease) -> tuple[int, str]:
                return (1, "error") if lease.first > 0 else (3, "error")

            for i in range(3):
                FakeWorker(hub, f"w{i}", act=first_lost(lost), plan=plan).start()
            kernel = await Kernel.open(hub)
            await kernel.enter(spec(hub, 60, contiguous=False), first_state())
            assert await kernel.loop(60) == "error"
            await kernel.close("error")
            assert lost
            assert kernel.indices() == [0, 1, 2]
            assert sum(bool(lease["exit"]) for answer in kernel.answers for lease in answer["leases"]) == 1

    run(main())
