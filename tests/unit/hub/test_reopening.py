"""Runs whose hub was killed: what the next one makes of the journal when the notebook comes back, and who gets which lease again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from depin_nb.core.errors import HubError, HubRestarted
from depin_nb.hub.leases.returning import RETURN_S
from depin_nb.ledger.wallet import Wallet

from .fleet import LOCAL, SOLO, FakeWorker, Hub, Kernel, first_state, hub_in, nobody_came


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


WALLET = Wallet.new("w").address


class Worker(FakeWorker):
    """With a process of its own, as real ones have. Asks for leases when it is told to."""

    process = "p1"

    def __init__(self, hub: Hub, name: str) -> None:
        super().__init__(hub, name)
        self.wallet = WALLET

    def join(self, held: list[str] = ()) -> dict:  # type: ignore[assignment]
        facts = {"name": self.name, "simulated": True, "backend": "depin", "process": self.process}
        return self.ops.join(self.address, self.profile, self.wallet, facts, held)


async def killed(home: Path, act: Callable[[Hub, Kernel, Worker], Awaitable[None]], strategy=LOCAL, budget="$1.00") -> Kernel:
    """A hub that dies once `act` has been: with one worker, and one entry of 20 units."""
    hub = Hub(home)
    worker = Worker(hub, "w")
    worker.join()
    kernel = await Kernel.open(hub, budget=budget)
    await kernel.enter(hub.spec(strategy, 20), first_state())
    hub.coordinator.kernel.units(kernel.run_id, kernel.entry, units(0), True)
    await act(hub, kernel, worker)
    while hub.coordinator._tasks:
        await asyncio.wait(hub.coordinator._tasks)
    hub.kill()
    return kernel


def units(first: int) -> list[tuple[int, bytes, int]]:
    return [(i, b"%d" % i, 2) for i in range(first, 20)]


async def leased(hub: Hub, kernel: Kernel, worker: Worker) -> None:
    worker.leases.append((await worker.ops.lease(worker.address, 5))["lease"])


def test_a_lease_that_was_lent_is_its_workers_again(tmp_path: Path):
    async def after(kernel: Kernel) -> None:
        async with hub_in(tmp_path) as hub:
            await hub.coordinator.recover()
            run_id = kernel.run_id
            active = hub.coordinator.runs[run_id]
            lease_id = next(iter(active.away))
            worker = Worker(hub, "w")
            assert worker.join([lease_id, "unknown"])["keep"] == [lease_id]
            assert worker.ops.alive(worker.address, lease_id, [lease_id])["later"] == [lease_id]
            assert (await worker.ops.report(worker.address, {"lease_id": lease_id}))["again"]
            ops = hub.coordinator.kernel
            with pytest.raises(HubRestarted):
                ops.units(run_id, 1, units(0), True)
            opened = await ops.run_reopen(run_id, 0)
            assert opened["entry"] == 1
            assert (await ops.run_reopen(run_id, 0))["entry"] == 1, "twice does no harm"
            ops.units(run_id, 1, units(0), True)
            assert list(hub.coordinator.members[worker.address].held) == [lease_id]
            assert active.budget.reserved.units > 0
            assert worker.ops.alive(worker.address, lease_id, [lease_id]) == {"go": True, "drop": [], "later": []}
            assert active.entry is not None
            assert active.entry.next_lease_id() == f"{run_id}-1-r1.2"

    run(after(run(killed(tmp_path, leased))))


@pytest.mark.parametrize("how", ["without it", "another process", "nobody"])
def test_a_lease_that_is_not_brought_back_is_open_again(tmp_path: Path, how: str):
    async def after(kernel: Kernel) -> None:
        async with hub_in(tmp_path) as hub:
            await hub.coordinator.recover()
            run_id = kernel.run_id
            active = hub.coordinator.runs[run_id]
            (lease_id,) = active.away
            worker = Worker(hub, "w")
            if how == "without it":
                worker.join([])
            elif how == "another process":
                worker.process = "p2"
                assert worker.join([lease_id])["keep"] == []
            await hub.coordinator.kernel.run_reopen(run_id, 0)
            hub.coordinator.kernel.units(run_id, 1, units(0), True)
            assert active.entry is not None
            if how == "nobody":
                assert active.entry.open_units < 20, "its worker may come"
                hub.clock.at_s += RETURN_S + 1
                hub.coordinator.tick()
            assert active.entry.open_units == 20
            assert not active.away
            assert active.budget.reserved.units == 0

    run(after(run(killed(tmp_path, leased))))


def test_a_solo_entry_whose_worker_is_another_process_is_shipped_again(tmp_path: Path):
    async def after(kernel: Kernel) -> None:
        async with hub_in(tmp_path) as hub:
            await hub.coordinator.recover()
            worker = Worker(hub, "w")
            worker.process = "p2"
            worker.join([])
            await hub.coordinator.kernel.run_reopen(kernel.run_id, 0)
            hub.coordinator.kernel.units(kernel.run_id, 1, units(0), True)
            answer = await hub.coordinator.kernel.results(kernel.run_id, 1, 0, 5)
            assert answer["state"] == "solo-lost"

    run(after(run(killed(tmp_path, leased, SOLO))))


def test_what_its_user_had_asked_for_holds(tmp_path: Path):
    async def paused(hub: Hub, kernel: Kernel, worker: Worker) -> None:
        await hub.coordinator.shared.control(kernel.run_id, "budget", "$3.00")
        await hub.coordinator.shared.control(kernel.run_id, "pause")

    async def after(kernel: Kernel) -> None:
        async with hub_in(tmp_path) as hub:
            await hub.coordinator.recover()
            status = (await hub.coordinator.kernel.run_reopen(kernel.run_id, 0))["status"]
            assert status["state"] == "paused"
            assert hub.coordinator.runs[kernel.run_id].budget.cap == hub.coordinator.prices.to_dpn(hub.coordinator.runs[kernel.run_id].cap)
            assert str(hub.coordinator.runs[kernel.run_id].cap) == "$3.00"

    run(after(run(killed(tmp_path, paused))))


def test_every_operation_may_be_made_twice(tmp_path: Path):
    async def nothing(hub: Hub, kernel: Kernel, worker: Worker) -> None:
        pass

    async def after(kernel: Kernel) -> None:
        async with hub_in(tmp_path) as hub:
            await hub.coordinator.recover()
            ops, run_id = hub.coordinator.kernel, kernel.run_id
            await ops.run_reopen(run_id, 0)
            again = await ops.entry_open(run_id, hub.spec(LOCAL, 20).to_dict(), first_state().to_bytes(), entry=1)
            assert again == {"entry": 1, "version": 0}
            for _ in range(2):
                assert await ops.entry_close(run_id, 1, "done") == {"version": 0}
            started = [await ops.run_start("n", "w", "auto", None, "depin", "", ticket="t") for _ in range(2)]
            assert started[0]["run_id"] == started[1]["run_id"]
            for _ in range(2):
                assert (await ops.run_finish(run_id, "finished"))["status"]["state"] == "finished"
            with pytest.raises(HubError, match="has ended: finished"):
                await ops.run_reopen(run_id, 0)

    run(after(run(killed(tmp_path, nothing))))


def test_a_run_whose_notebook_does_not_come_is_interrupted_and_settled(tmp_path: Path):
    async def after(kernel: Kernel) -> None:
        async with hub_in(tmp_path) as hub:
            await hub.coordinator.recover()
            assert [s.state for s in hub.coordinator.statuses()] == ["waiting"]
            await nobody_came(hub)
            row = hub.journal.run(kernel.run_id)
            assert (row.state, row.settled) == ("interrupted", True)
            assert hub.journal.connection.execute("SELECT COUNT(*) FROM lent").fetchone() == (0,)
            with pytest.raises(HubError, match="--resume"):
                await hub.coordinator.kernel.run_reopen(kernel.run_id, 0)

    run(after(run(killed(tmp_path, leased))))
