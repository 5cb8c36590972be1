"""Whole entries on the real coordinator, journal, merge and ledger, with workers that die, hang, lie and come late."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from depin_nb.core.lease import Lease
from depin_nb.core.state import State
from depin_nb.ledger import store

from .fleet import LOCAL, SOLO, SYNC, FakeWorker, Hub, Kernel, first_state, hub_in, seeded, worked


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def test_solo_is_bit_identical_with_doing_it_here(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker = FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 40), first_state())
            assert await kernel.loop(40) == "running"
            state = await kernel.close()
            assert kernel.indices() == list(range(40)) == kernel.counted()
            assert len(worker.leases) > 5, "a solo worker gets small leases, one after the other"
            units = tuple(u for lease in worker.leases for u in lease.units)
            here = worked(first_state(), Lease("", "", 0, 0, units), 40)
            assert all(torch.equal(here.tensors[n], state.tensors[n]) for n in here.tensors)
            status = await kernel.finish()
            assert status["iterations_done"] == 40
            assert status["state"] == "finished"
            assert len(status["loss"]) == 40

    run(main())


@pytest.mark.parametrize("workers", [1, 3])
def test_local_counts_every_unit_once(tmp_path: Path, workers: int):
    async def main():
        async with hub_in(tmp_path) as hub:
            fleet = [FakeWorker(hub, f"w{i}", speed=1 + i).start() for i in range(workers)]
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 47), first_state())
            await kernel.loop(47)
            state = await kernel.close()
            assert kernel.indices() == list(range(47)) == kernel.counted()
            assert int(state.tensors["bn/n"]) == 47
            assert all(w.leases for w in fleet)
            for lease in (each for w in fleet for each in w.leases):
                indices = [u.index for u in lease.units]
                assert indices == list(range(indices[0], indices[0] + len(indices)))
            assert "opt/exp_avg" in state.tensors, "the last round brings the optimizer's state"
            if workers == 3:
                assert sum(len(each.units) for each in fleet[2].leases) > sum(len(each.units) for each in fleet[0].leases)

    run(main())


def pass_deadline(hub: Hub, lease: Lease) -> None:
    """Deadlines follow what leases took, and those that stood through such a wait took long."""
    for run in hub.coordinator.runs.values():
        record = run.entry.record(lease.lease_id) if run.entry is not None and run.run_id == lease.run_id else None
        if record is not None:
            hub.clock.at_s = max(hub.clock.at_s, record.deadline_s + 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strategy", [LOCAL, SYNC], ids=["local", "sync"])
def test_every_unit_once_whatever_dies(tmp_path: Path, seed: int, strategy):
    async def main():
        async with hub_in(tmp_path) as hub:
            born: list[FakeWorker] = []
            troubled: asyncio.Queue[tuple[FakeWorker, str]] = asyncio.Queue()

            def spawn() -> None:
                act = seeded(seed * 100 + len(born), 0.35, ("die", "hang", "garbage"))
                born.append(FakeWorker(hub, f"w{len(born)}", act=act))
                born[-1].troubled = troubled
                born[-1].start()

            async def replace_the_lost() -> None:
                """Lets those that hang expire, has all of them hand in too late, and starts another one for each."""
                while True:
                    worker, what = await troubled.get()
                    if what == "hang":
                        while not any(r.polls for r in hub.coordinator.runs.values()):
                            await asyncio.sleep(0)  # only a kernel that waits is known to be alive
                        pass_deadline(hub, worker.leases[-1])
                        hub.coordinator.tick()
                        assert not hub.coordinator.workers.alive(worker.address, worker.leases[-1].lease_id)["go"]
                        answer = await hub.coordinator.workers.report(worker.address, worker.unsent)
                        assert strategy is LOCAL or not answer["accepted"], "a late rank counts nothing"
                        worker.task.cancel()
                        hub.coordinator.worker_lost(worker.address)
                    spawn()

            for _ in range(3):
                spawn()
            replacing = asyncio.ensure_future(replace_the_lost())
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(strategy, 90), first_state())
            playing = asyncio.ensure_future(kernel.loop(90))
            done, _ = await asyncio.wait([playing, replacing], return_when=asyncio.FIRST_COMPLETED)
            assert playing in done, replacing.exception()
            replacing.cancel()
            assert playing.result() == "running"
            state = await kernel.close()
            assert kernel.indices() == list(range(90)) == kernel.counted()
            assert int(state.tensors["bn/n"]) == 90
            assert len(born) > 3 or any(w.refused for w in born), "nothing went wrong: the test would show nothing"
            assert hub.coordinator.runs[kernel.run_id].budget.reserved.units == 0

    run(main())


def test_a_second_report_counts_nothing(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker = FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 5), first_state())
            await kernel.loop(5)
            report = worker.report(worker.leases[0], first_state(), 5, "")
            assert not (await hub.coordinator.workers.report(worker.address, report))["accepted"]
            assert kernel.counted() == list(range(5))

    run(main())


def test_a_gang_averages_and_merges_as_one(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            fleet = [FakeWorker(hub, f"w{i}").start() for i in range(3)]
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SYNC, 16), first_state())
            await kernel.loop(16)
            state = await kernel.close()
            assert kernel.indices() == list(range(16)) == kernel.counted()
            assert int(state.tensors["bn/n"]) == 16
            lease = fleet[1].leases[0]
            assert [u.index for u in lease.units] == [1, 4, 7, 10]
            assert (lease.rank, lease.size, lease.groups, lease.group_samples) == (1, 3, (0, 1, 2, 3), (6, 6, 6, 6))
            short = [w.leases[-1] for w in fleet if len(w.leases) == 2]
            assert [(each.size, each.group_size) for each in short] == [(3, (3, 1)), (3, (3,)), (3, (3,))]

    run(main())


def test_a_lost_rank_aborts_its_gang_and_a_smaller_one_forms(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            fleet = [FakeWorker(hub, f"w{i}", act=(lambda lease: "die") if i == 2 else None).start() for i in range(3)]
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SYNC, 12), first_state())
            await kernel.loop(12)
            assert kernel.counted() == list(range(12))
            assert fleet[0].leases[0].size == 3
            assert fleet[0].leases[1].size == 2

    run(main())


@pytest.mark.parametrize("how", ["break", "return", "error"])
@pytest.mark.parametrize("strategy", [SOLO, LOCAL, SYNC], ids=["solo", "local", "sync"])
def test_an_exit_ends_the_results_there(tmp_path: Path, strategy, how: str):
    def plan(lease: Lease) -> tuple[int, str]:
        for place, unit in enumerate(lease.units):
            if unit.index == 13:
                return place + 1, how
        return len(lease.units), ""

    async def main():
        async with hub_in(tmp_path) as hub:
            fleet = [FakeWorker(hub, f"w{i}", plan=plan).start() for i in range(3)]
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(strategy, 60), first_state())
            assert await kernel.loop(60) == how
            state = await kernel.close("exit")
            assert kernel.indices() == list(range(14)) == kernel.counted()
            assert int(state.tensors["bn/n"]) == 14
            status = await kernel.finish()
            assert (
                sum(r.units_dpn for r in receipts_of(hub, kernel.run_id))
                == status["tokens_paid"]["units"]
                == status["tokens_accrued"]["units"]
            )
            assert fleet

    run(main())


def receipts_of(hub, run_id: str):
    return store.receipts(hub.journal.connection, run_id)


def test_work_beyond_an_exit_is_paid_and_not_merged(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            plan = lambda lease: (3, "break") if lease.first == 0 else (len(lease.units), "")  # noqa: E731
            fleet = [FakeWorker(hub, f"w{i}", plan=plan).start() for i in range(2)]
            gate = fleet[0].gate = asyncio.Event()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 10), first_state())
            playing = asyncio.ensure_future(kernel.loop(10))
            await fleet[1].on_lease.wait()
            record = hub.coordinator.runs[kernel.run_id].entry
            while not any(r.accepted for r in record.rounds):
                await asyncio.sleep(0)
            gate.set()
            assert await playing == "break"
            await kernel.close("exit")
            assert kernel.counted() == [0, 1, 2]
            paid = {r.worker_id: (r.count, r.version) for r in receipts_of(hub, kernel.run_id)}
            assert paid == {"w0": (3, 1), "w1": (5, -1)}
            await kernel.finish()
            assert {state for _, state, _ in hub.journal.leases(kernel.run_id)} == {"paid", "discarded_paid"}

    run(main())


def test_a_lost_solo_worker_is_said_and_the_entry_goes_on_in_a_new_one(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a", speed=2.0, act=lambda lease: "die" if lease.first >= 6 else None).start()
            FakeWorker(hub, "b").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 30), first_state())
            assert await kernel.loop(30) == "solo-lost"
            done = len(kernel.logs)
            assert 6 <= done < 30
            state = await kernel.close("interrupt")
            assert int(state.tensors["bn/n"]) == done
            before = kernel.counted()
            await kernel.enter(hub.spec(SOLO, 30, first=done), None)
            assert await kernel.loop(30, first=done) == "running"
            assert kernel.indices() == list(range(30)) == before + kernel.counted()
            assert int((await kernel.close()).tensors["bn/n"]) == 30

    run(main())


def test_a_kernel_that_feeds_one_by_one_is_not_kept_waiting(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            for strategy in (SOLO, LOCAL, SYNC):
                workers = [FakeWorker(hub, f"{strategy.name}{strategy.solo}{i}").start() for i in range(2)]
                kernel = await Kernel.open(hub)
                await kernel.enter(hub.spec(strategy), first_state())
                await kernel.loop(6, batch=1)
                assert kernel.indices() == list(range(6)) == kernel.counted()
                await kernel.finish()
                for worker in workers:
                    hub.coordinator.worker_lost(worker.address)

    run(main())


def test_two_runs_share_the_workers(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            for i in range(3):
                FakeWorker(hub, f"w{i}").start()
            kernels = [await Kernel.open(hub) for _ in range(2)]
            for kernel, strategy in zip(kernels, (LOCAL, SYNC), strict=True):
                await kernel.enter(hub.spec(strategy, 40), first_state())
            await asyncio.gather(*(k.loop(40) for k in kernels))
            for kernel in kernels:
                assert kernel.indices() == list(range(40)) == kernel.counted()

    run(main())


def test_several_entries_go_on_from_the_newest_version(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            for i in range(2):
                FakeWorker(hub, f"w{i}").start()
            kernel = await Kernel.open(hub)
            state: State | None = first_state()
            for entry in range(3):
                await kernel.enter(hub.spec(LOCAL, 12), state)
                await kernel.loop(12)
                assert int((await kernel.close()).tensors["bn/n"]) == 12 * (entry + 1)
                state = None
            status = await kernel.finish()
            assert (status["iterations_done"], status["iterations_total"], status["entry"]) == (36, 36, 3)

    run(main())
