"""A member holds one lease at work and one ahead: what it names it has, what it doesn't name is lost, what was built on a loss goes too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from depin_nb.core.lease import Lease

from .fleet import SOLO, FakeWorker, Hub, Kernel, first_state, hub_in, worked


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


async def solo(hub: Hub, total: int = 40) -> tuple[FakeWorker, Kernel]:
    worker = FakeWorker(hub, "a")
    worker.ops.join(worker.address, worker.profile, worker.wallet, {"name": "a", "simulated": True, "backend": "depin"})
    kernel = await Kernel.open(hub)
    await kernel.enter(hub.spec(SOLO, total), first_state())
    kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"%d" % i, 2) for i in range(total)], True)
    return worker, kernel


async def given(worker: FakeWorker, *held: Lease) -> Lease | None:
    answer = await worker.ops.lease(worker.address, 0, [each.lease_id for each in held])
    return Lease.from_dict(answer["lease"]) if "lease" in answer else None


def test_a_solo_worker_has_the_next_lease_before_it_reports(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker, kernel = await solo(hub)
            hands: list[Lease] = []
            state, done = first_state(), []
            while len(done) < 40:
                while (lease := await given(worker, *hands)) is not None:
                    hands.append(lease)
                assert len(hands) <= 2
                assert [each.base_version for each in hands] == list(range(hands[0].base_version, hands[0].base_version + len(hands)))
                if len(hands) == 1:
                    assert hands[0].units[-1].index == 39, "only the last one has nothing behind it"
                lease = hands.pop(0)
                report = worker.report(lease, state, len(lease.units), "")
                state = worker._last
                assert (await worker.ops.report(worker.address, report))["accepted"]
                done += [u.index for u in lease.units]
            merged = await kernel.close()
            assert kernel.counted() == list(range(40)) == done
            here = worked(first_state(), Lease("", "", 0, 0, tuple(u for u in _units(40))), 40)
            assert all(torch.equal(here.tensors[n], merged.tensors[n]) for n in here.tensors)

    run(main())


def _units(count: int):
    from depin_nb.core.lease import Unit

    return [Unit(i, b"", 2) for i in range(count)]


@pytest.mark.parametrize("how", ["refused", "unnamed", "gone", "late"])
def test_what_was_built_on_a_lost_lease_is_lost_with_it(tmp_path: Path, how: str):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker, kernel = await solo(hub)
            first = await given(worker)
            second = await given(worker, first)
            assert first is not None
            assert second is not None
            if how == "refused":
                report = worker.report(first, first_state(), len(first.units), "")
                assert not (await worker.ops.report(worker.address, {**report, "change": b"\x80garbage"}))["accepted"]
            elif how == "unnamed":
                await given(worker, second)
            elif how == "gone":
                hub.coordinator.worker_lost(worker.address)
            else:
                hub.clock.at_s += 100
                hub.coordinator.tick()
            active = hub.coordinator.runs[kernel.run_id]
            assert active.entry.halt == "solo-lost"
            assert active.entry.open_units == 40
            assert active.budget.reserved.units == 0
            if how != "gone":
                answer = worker.ops.alive(worker.address, second.lease_id, [first.lease_id, second.lease_id])
                assert answer == {"go": False, "drop": [first.lease_id, second.lease_id], "later": []}
                assert not hub.coordinator.members[worker.address].held
                report = worker.report(second, worked(first_state(), first, len(first.units)), len(second.units), "")
                assert not (await worker.ops.report(worker.address, report))["accepted"]
            await kernel.close("interrupt")
            assert kernel.counted() == []

    run(main())


def test_an_exit_cancels_the_lease_ahead(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker, kernel = await solo(hub)
            first = await given(worker)
            second = await given(worker, first)
            report = worker.report(first, first_state(), 1, "break")
            assert (await worker.ops.report(worker.address, report))["accepted"]
            assert not worker.ops.alive(worker.address, second.lease_id)["go"]
            assert await given(worker) is None
            await kernel.close("exit")
            assert kernel.counted() == [0]
            assert (await kernel.finish())["tokens_accrued"]["units"] == hub.coordinator.ended[kernel.run_id].budget.spent.units

    run(main())


def test_a_lease_ahead_is_timed_from_when_its_worker_can_begin(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker, kernel = await solo(hub)
            first = await given(worker)
            second = await given(worker, first)
            entry = hub.coordinator.runs[kernel.run_id].entry
            assert entry.record(second.lease_id).begun_s is None
            hub.clock.at_s += 30
            await worker.ops.report(worker.address, worker.report(first, first_state(), len(first.units), ""))
            assert entry.record(second.lease_id).begun_s == hub.clock.at_s
            hub.clock.at_s += 30
            hub.coordinator.tick()
            assert entry.halt == "", "sixty seconds after it was given it isn't late"

    run(main())


def test_no_lease_ahead_while_another_run_wants_the_worker(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker, kernel = await solo(hub)
            other = await Kernel.open(hub)
            await other.enter(hub.spec(SOLO, 40), first_state())
            other.ops.units(other.run_id, other.entry, [(i, b"", 2) for i in range(40)], True)
            first = await given(worker)
            assert await given(worker, first) is None
            await worker.ops.report(worker.address, worker.report(first, first_state(), len(first.units), ""))
            second = await given(worker)
            assert {first.run_id, second.run_id} == {kernel.run_id, other.run_id}, "runs take turns"

    run(main())
