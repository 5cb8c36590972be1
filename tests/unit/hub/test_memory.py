"""A lease goes only where its memory fits; who ran out of it isn't asked again for that run, and isn't blamed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from depin_nb.core.lease import Lease, Report
from depin_nb.hub.leases.members import member_of

from .fleet import LOCAL, FakeWorker, Hub, Kernel, first_state, hub_in

GB = 10**9


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def joined(hub: Hub, name: str, memory_bytes: object) -> FakeWorker:
    worker = FakeWorker(hub, name)
    facts = {"name": name, "simulated": True, "backend": "depin", "memory_bytes": memory_bytes}
    worker.ops.join(worker.address, "phone", worker.wallet, facts)
    return worker


async def entered(hub: Hub, memory_bytes: int) -> Kernel:
    kernel = await Kernel.open(hub)
    await kernel.enter(replace(hub.spec(LOCAL, 20), memory_bytes=memory_bytes), first_state())
    kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(20)], True)
    return kernel


def test_a_lease_goes_only_where_it_fits_with_a_margin(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            small, tight, large = joined(hub, "small", GB), joined(hub, "tight", 2 * GB), joined(hub, "large", 3 * GB)
            unsaid = joined(hub, "unsaid", None)
            kernel = await entered(hub, 2 * GB)
            found = hub.coordinator.muster.members(hub.coordinator.runs[kernel.run_id])
            assert [m.worker_id for m in found] == ["large", "unsaid"]
            assert set(kernel.ops.needs({}, 2 * GB)["small"]) == {"small", "tight"}
            assert "wait" in await small.ops.lease(small.address, 0)
            assert "wait" in await tight.ops.lease(tight.address, 0)
            asking = asyncio.ensure_future(large.ops.lease(large.address, 5))
            await asyncio.sleep(0)
            assert "lease" in await unsaid.ops.lease(unsaid.address, 5)
            assert "lease" in await asking

    run(main())


def test_without_any_that_is_large_enough_the_user_is_told(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            joined(hub, "small", GB)
            kernel = await entered(hub, 4 * GB)
            hub.coordinator.tick()
            answer = await kernel.ops.results(kernel.run_id, kernel.entry, 0, 0)
            assert (answer["state"], answer["error"]["type"]) == ("failed", "OutOfMemory")
            assert "5 GB" in answer["error"]["message"]
            assert "small 1 GB" in answer["error"]["message"]

    run(main())


def test_who_ran_out_of_memory_is_not_asked_again_for_that_run(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker = joined(hub, "a", None)
            kernel = await entered(hub, 1)
            lease = Lease.from_dict((await worker.ops.lease(worker.address, 5))["lease"])
            failed = Report(lease.lease_id, 0, (), b"", extra={"failed": "MemoryError: ", "type": "OutOfMemory"})
            assert not (await worker.ops.report(worker.address, failed.to_dict()))["accepted"]
            member = hub.coordinator.members[worker.address]
            assert member.barred(kernel.run_id)
            assert not member.barred("another")
            assert not member.rejected
            answer = await kernel.ops.results(kernel.run_id, kernel.entry, 0, 0)
            assert answer["error"]["type"] == "OutOfMemory"

    run(main())


@pytest.mark.parametrize("said", [-1, 0, True, 1.5, "4 GB", None, 1 << 60, float("nan")])
def test_odd_sizes_are_not_believed(said):
    member = member_of("tcp://x", "phone", "w", {"memory_bytes": said}, "s", 0.0)
    assert member.memory_bytes == 0
    assert member.fits(1 << 40)
