"""Budgets, controls, interrupts, silence, and a hub that is killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from depin_nb.core.amount import DPN, Amount
from depin_nb.core.errors import HubError
from depin_nb.core.lease import Lease
from depin_nb.core.state import State
from depin_nb.core.status import Status
from depin_nb.ledger.verify import verify_run
from depin_nb.metering.meter import lease_cost

from .fleet import LOCAL, SOLO, SYNC, TFLOP, FakeWorker, Hub, Kernel, first_state, hub_in, nobody_came


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("strategy", [SOLO, LOCAL, SYNC], ids=["solo", "local", "sync"])
@pytest.mark.parametrize("iterations", [0, 1, 17])
def test_a_budget_is_never_overspent(tmp_path: Path, strategy, iterations: int):
    async def main():
        async with hub_in(tmp_path) as hub:
            for i in range(2):
                FakeWorker(hub, f"w{i}").start()
            one = lease_cost(hub.coordinator.prices, "phone", TFLOP)
            kernel = await Kernel.open(hub, budget=(one.times(iterations)).to_dict())
            await kernel.enter(hub.spec(strategy, 100), first_state())
            assert await kernel.loop(100) == "budget"
            state = await kernel.close("interrupt")
            status = await kernel.finish("budget")
            spent = Amount.from_dict(status["tokens_accrued"])
            assert spent == one.times(len(kernel.counted())) == Amount.from_dict(status["tokens_paid"])
            assert spent <= one.times(iterations)
            if strategy is not SYNC:  # a gang takes whole rounds
                assert len(kernel.counted()) == iterations
            assert int(state.tensors["bn/n"]) == len(kernel.counted())
            assert status["state"] == "budget"

    run(main())


def test_a_raised_budget_goes_on_and_warns_at_four_fifths(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            one = lease_cost(hub.coordinator.prices, "phone", TFLOP)
            kernel = await Kernel.open(hub, budget=one.times(10).to_dict())
            await kernel.enter(hub.spec(LOCAL, 30), first_state())
            assert await kernel.loop(30) == "budget"
            await hub.coordinator.shared.control(kernel.run_id, "budget", one.times(30).to_dict())
            assert await hub.coordinator.in_books(hub.ledger.accrued, kernel.run_id) == {"a": one.times(10).units}
            while len(kernel.counted()) < 30:
                await asyncio.wait_for(kernel.ops.results(kernel.run_id, kernel.entry, len(kernel.counted()), 5), 10)
                kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(30)], True)
            await kernel.close()
            status = await kernel.finish()
            assert status["tokens_paid"]["units"] == one.times(30).units
            assert [e.kind for e in hub.journal.events(kernel.run_id)].count("budget-warning") >= 1

    run(main())


def test_a_free_device_spends_nothing(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a", profile="local").start()
            kernel = await Kernel.open(hub, budget="$0.000001", backend="local")
            await kernel.enter(hub.spec(SOLO, 10), first_state())
            assert await kernel.loop(10) == "running"
            await kernel.close()
            assert (await kernel.finish())["tokens_paid"]["units"] == 0

    run(main())


def test_the_chain_and_the_receipts_agree(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            for i in range(3):
                FakeWorker(hub, f"w{i}", speed=1 + i).start()
            kernel = await Kernel.open(hub, budget="$0.50")
            await kernel.enter(hub.spec(LOCAL, 40), first_state())
            await kernel.loop(40)
            await kernel.close()
            status = await kernel.finish()
            assert status["signatures"]
            assert status["tokens_paid"] == status["tokens_accrued"]
            report = await hub.coordinator.in_books(verify_run, kernel.run_id, hub.journal.connection, hub.chain)
            assert report.ok, report.problems
            assert Status.from_dict(json.loads(json.dumps(status))).ended

    run(main())


def test_pause_holds_and_resume_goes_on(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker = FakeWorker(hub, "a")
            worker.gate = asyncio.Event()
            worker.start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 20), first_state())
            playing = asyncio.ensure_future(kernel.loop(20))
            await worker.on_lease.wait()
            await hub.coordinator.shared.control(kernel.run_id, "pause")
            worker.gate.set()
            entry = hub.coordinator.runs[kernel.run_id].entry
            while entry.busy:
                await asyncio.sleep(0)
            assert len(worker.leases) == 1
            assert (await kernel.ops.results(kernel.run_id, kernel.entry, 0, 0))["state"] == "paused"
            await hub.coordinator.shared.control(kernel.run_id, "resume")
            assert await playing == "running"
            assert kernel.counted() == list(range(20))

    run(main())


@pytest.mark.parametrize("strategy", [SOLO, LOCAL, SYNC], ids=["solo", "local", "sync"])
def test_stop_ends_with_the_last_merge(tmp_path: Path, strategy):
    async def main():
        async with hub_in(tmp_path) as hub:
            workers = [FakeWorker(hub, f"w{i}", act=lambda lease: "hang" if lease.base_version else None) for i in range(2)]
            for worker in workers:
                worker.troubled = asyncio.Queue()
                worker.start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(strategy, 60), first_state())
            playing = asyncio.ensure_future(kernel.loop(60))
            first = [asyncio.ensure_future(w.troubled.get()) for w in workers]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            await hub.coordinator.shared.control(kernel.run_id, "stop")
            assert await playing == "stopped"
            state = await kernel.close("interrupt")
            assert int(state.tensors["bn/n"]) == len(kernel.logs) == len(kernel.counted()) > 0
            assert (await kernel.finish("stopped"))["state"] == "stopped"
            for worker in (w for w in workers if w.leases):
                assert not hub.coordinator.workers.alive(worker.address, worker.leases[-1].lease_id)["go"]
            for task in [*first, *(w.task for w in workers)]:
                task.cancel()

    run(main())


@pytest.mark.parametrize("strategy", [SOLO, LOCAL, SYNC], ids=["solo", "local", "sync"])
def test_an_interrupt_pays_what_was_accepted_and_leaves_nobody_busy(tmp_path: Path, strategy):
    async def main():
        async with hub_in(tmp_path) as hub:
            slow = FakeWorker(hub, "slow", act=lambda lease: "hang")
            slow.troubled = asyncio.Queue()
            slow.start()
            if strategy is not SOLO:
                FakeWorker(hub, "quick").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(strategy, 60), first_state())
            playing = asyncio.ensure_future(kernel.loop(60))
            await slow.troubled.get()
            active = hub.coordinator.runs[kernel.run_id]
            while strategy is LOCAL and not any(r.accepted for r in active.entry.rounds):
                await asyncio.sleep(0)
            state = await kernel.close("interrupt")
            with pytest.raises(HubError, match="closed"):
                await kernel.ops.results(kernel.run_id, kernel.entry, 0, 1)
            playing.cancel()
            assert int(state.tensors["bn/n"]) == 0
            assert not hub.coordinator.workers.alive("tcp://slow", slow.leases[-1].lease_id)["go"]
            status = await kernel.finish("interrupted")
            assert (status["tokens_paid"]["units"] > 0) == (strategy is LOCAL)
            assert all(not m.held for m in hub.coordinator.members.values())
            slow.task.cancel()

    run(main())


def test_a_silent_kernel_interrupts_its_run_only(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            kernel, other = await Kernel.open(hub), await Kernel.open(hub)
            hub.clock.at_s += 100
            hub.coordinator.shared.status(other.run_id)
            hub.clock.at_s += 100
            hub.coordinator.tick()
            while kernel.run_id in hub.coordinator.runs:
                await hub.coordinator.changed.wait(5)
            assert hub.journal.run(kernel.run_id).state == "interrupted"
            assert other.run_id in hub.coordinator.runs
            with pytest.raises(HubError, match="interrupted"):
                kernel.ops.units(kernel.run_id, 1, [], True)

    run(main())


def test_without_workers_the_kernel_is_told(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 10), first_state())
            playing = asyncio.ensure_future(kernel.loop(10))
            hub.coordinator.tick()
            while not hub.coordinator.runs[kernel.run_id].polls:
                await asyncio.sleep(0)
            assert not playing.done()
            hub.clock.at_s += 30
            hub.coordinator.tick()
            assert await playing == "no-workers"

    run(main())


def test_a_run_that_no_worker_can_report_fails_with_the_reason(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a", act=lambda lease: "garbage").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 10), first_state())
            assert await kernel.loop(10) == "failed"
            error = kernel.answers[-1]["error"]
            assert error["type"] == "HubError"
            assert "codec" in error["message"]
            assert (await kernel.finish("failed"))["tokens_paid"]["units"] == 0

    run(main())


def test_a_merge_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def main():
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 10), first_state())

            def broken(conn, receipt):
                raise OSError("disk full")

            monkeypatch.setattr(hub.ledger, "record", broken)
            assert await kernel.loop(10) == "failed"
            assert "disk full" in kernel.answers[-1]["error"]["message"]
            monkeypatch.undo()
            state = await kernel.close("interrupt")
            assert int(state.tensors["bn/n"]) == 0
            assert kernel.counted() == []
            assert hub.journal.run(kernel.run_id).merges == ()
            status = await kernel.finish("failed")
            assert status["tokens_accrued"]["units"] == status["reserved"]["units"] == 0

    run(main())


def test_a_killed_hub_is_opened_again_with_nothing_lost_or_paid_twice(tmp_path: Path):
    async def before() -> tuple[str, int]:
        hub = Hub(tmp_path)
        worker = FakeWorker(hub, "a", act=lambda lease: "hang" if lease.base_version >= 3 else None)
        worker.troubled = asyncio.Queue()
        worker.start()
        kernel = await Kernel.open(hub, budget="$1.00")
        await kernel.enter(hub.spec(LOCAL, 100), first_state())
        playing = asyncio.ensure_future(kernel.loop(100))
        await worker.troubled.get()
        for task in (worker.task, playing):
            task.cancel()
        hub.kill()
        return kernel.run_id, 15

    async def after(run_id: str, done: int) -> None:
        async with hub_in(tmp_path) as hub:
            assert hub.journal.run(run_id).ended_at is None
            assert await hub.coordinator.recover() == []
            await nobody_came(hub)
            row = hub.journal.run(run_id)
            assert (row.state, row.settled, len(row.merges)) == ("interrupted", True, 3)
            assert [i for i, _ in hub.journal.merged_units(run_id, 1)] == list(range(done))
            state = State.from_bytes(hub.journal.newest_state(run_id).read_bytes())
            assert int(state.tensors["bn/n"]) == done
            assert len(row.losses) == done
            one = lease_cost(hub.coordinator.prices, "phone", TFLOP)
            report = verify_run(run_id, hub.journal.connection, hub.chain)
            assert report.ok, report.problems
            assert sum(r.units_by_chain for r in report.rows) == one.times(done).units
            assert await hub.coordinator.recover() == []
            status = hub.coordinator.shared.status(run_id)["status"]
            assert (status["state"], status["iterations_done"], status["merges"]) == ("interrupted", done, 3)
            assert status["tokens_paid"]["units"] == one.times(done).units
            FakeWorker(hub, "b").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 10), state)
            assert await kernel.loop(10) == "running"
            assert int((await kernel.close()).tensors["bn/n"]) == done + 10

    run(after(*run(before())))


def test_status_is_plain_and_complete(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            workers = [FakeWorker(hub, f"w{i}", act=lambda lease: "die" if lease.rank else None) for i in range(2)]
            for worker in workers:
                worker.start()
            kernel = await Kernel.open(hub, budget="$1")
            await kernel.enter(hub.spec(SYNC, 24), first_state())
            hub.clock.at_s += 2
            await kernel.loop(24)
            hub.clock.at_s += 1
            everything = hub.coordinator.shared.status()
            status = Status.from_dict(json.loads(json.dumps(everything["runs"][0])))
            assert [w["name"] for w in everything["workers"]] == ["w0"]
            assert (status.iterations_done, status.iterations_total, status.samples_done) == (24, 24, 48)
            assert {d.name: d.state for d in status.devices} == {"w0": "waiting", "w1": "lost"}
            assert status.simulated
            assert status.tokens_accrued == Amount(lease_cost(hub.coordinator.prices, "phone", TFLOP).units * 24, DPN)
            assert status.notices
            assert status.bytes_up > 0
            assert status.bytes_down > 0
            assert len(status.loss) == 24

    run(main())


def test_a_report_must_be_what_its_lease_allows(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            worker = FakeWorker(hub, "a")
            hub.coordinator.workers.join(worker.address, "phone", worker.wallet, {"name": "a"})
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 100), first_state())
            kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"", 2) for i in range(20)], False)
            run_ = hub.coordinator.runs[kernel.run_id]
            wrong = [
                {"done": 0, "logs": ()}, {"done": 4}, {"done": 6}, {"exit": "leave"}, {"logs": (1, 2, 3, 4, 5)}, {"logs": None},
                {"seconds": float("nan")}, {"seconds": "long"}, {"change": None}, {"change": b""}, {"left": 3}, {"losses": ((1,),)},
                {"done": True}, {"unknown": 1}, {"logs": (bytes(65 << 20), b"", b"", b"", b"")},
            ]  # fmt: skip
            for change in wrong:
                run_.backlog.clear()
                hub.coordinator.members[worker.address].forget(kernel.run_id)
                lease = Lease.from_dict((await worker.ops.lease(worker.address, 5))["lease"])
                good = worker.report(lease, first_state(), 5, "")
                answer = await worker.ops.report(worker.address, {**good, **change})
                assert not answer["accepted"], change
                assert run_.backlog[0].state == "open", change
            assert run_.budget.reserved.units == 0
            lease = Lease.from_dict((await worker.ops.lease(worker.address, 5))["lease"])
            losses = ((0, float("nan")), (99, 1.0), (1, 0.5))
            answer = await worker.ops.report(worker.address, {**worker.report(lease, first_state(), 5, ""), "losses": losses})
            assert answer["accepted"]
            await hub.coordinator.commits.settled(run_)
            assert hub.coordinator.status(run_).loss == ((1.0, 0.5),)

    run(main())
