"""A worker's leases: computing goes on while a report travels, and what was built on a refused one is dropped."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from depin_nb.core.errors import HubDied
from depin_nb.core.lease import Lease, Report, Unit
from depin_nb.worker.runner import Finished, Seat
from depin_nb.worker.serving import Serving


class Runner:
    """Runs nothing; says what it was told."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.refusals: list[str] = []
        self.acceptances: list[str] = []
        self.exits: dict[str, str] = {}

    def run(self, lease: Lease, go):
        if not go():
            return None
        self.ran.append(lease.lease_id)
        report = Report(lease.lease_id, 1, (b"",), b"", exit=self.exits.get(lease.lease_id, ""))
        return Finished(lease, report, Seat(None), None, {}, 0, None, {})

    def accepted(self, finished: Finished) -> None:
        self.acceptances.append(finished.lease.lease_id)

    def refused(self, finished: Finished) -> None:
        self.refusals.append(finished.lease.lease_id)


class Hub:
    """Gives leases `1`, `2`, .. and answers a report once it is let."""

    whole_bytes = up_part_bytes = 1 << 20

    def __init__(self, count: int, accepted=lambda lease_id: True) -> None:
        self.count, self.accepted = count, accepted
        self.given, self.asked, self.reports = 0, [], []
        self.let = asyncio.Event()
        self.seen = asyncio.Condition()

    async def changed(self):
        """The link is what it was."""

    async def call(self, op: str, *, shaped: bool = True, **request):
        if op == "depin_alive":
            return {"go": True, "drop": []}
        if op == "depin_report":
            async with self.seen:
                self.reports.append(request["report"]["lease_id"])
                self.seen.notify_all()
            await self.let.wait()
            return {"accepted": self.accepted(request["report"]["lease_id"])}
        self.asked.append(request["held"])
        if self.given == self.count:
            async with self.seen:
                await self.seen.wait_for(lambda: len(self.reports) >= self.count)
            await self.let.wait()
            return {"leave": True}
        self.given += 1
        return {"lease": Lease(str(self.given), "run-1", 1, self.given - 1, (Unit(self.given, b"", 1),)).to_dict()}


class Worker(Serving):
    """Serves one hub, as the agent has it do."""

    def __init__(self, hub, runner, pool, name) -> None:
        super().__init__(lambda ask: runner, pool, name)
        self.hub = hub

    async def run(self) -> None:
        working = asyncio.ensure_future(self.work())
        try:
            await self.serve(self.hub)
        finally:
            working.cancel()
            await self.stop()


def serve(work):
    async def main():
        with ThreadPoolExecutor(1) as pool:
            await asyncio.wait_for(work(pool), 30)

    asyncio.run(main())


def test_the_next_lease_is_computed_while_the_report_of_the_former_travels():
    async def work(pool):
        hub, runner = Hub(6), Runner()
        serving = asyncio.ensure_future(Worker(hub, runner, pool, "w").run())
        async with hub.seen:
            await hub.seen.wait_for(lambda: hub.reports)
        while len(runner.ran) < 2:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert hub.reports == ["1"], "one report at a time, in order"
        assert runner.ran == ["1", "2"], "finished ones hold a copy of the state each: no more than two"
        hub.count = 4
        hub.let.set()
        await serving
        assert hub.reports == runner.ran == runner.acceptances == ["1", "2", "3", "4"]
        assert hub.asked[:2] == [[], ["1"]]
        assert all(len(held) <= 4 for held in hub.asked)

    serve(work)


def test_what_was_built_on_a_refused_report_is_dropped():
    async def work(pool):
        hub, runner = Hub(4, accepted=lambda lease_id: lease_id != "1"), Runner()
        serving = asyncio.ensure_future(Worker(hub, runner, pool, "w").run())
        while len(runner.ran) < 2 or hub.given < 4:
            await asyncio.sleep(0)
        hub.let.set()
        while len(runner.refusals) < 2:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        serving.cancel()
        await asyncio.wait([serving])
        assert hub.reports == ["1"]
        assert (runner.refusals, runner.acceptances) == (["1", "2"], [])
        assert runner.ran == ["1", "2"], "3 and 4 were in hand"

    serve(work)


def test_a_loop_that_was_left_ends_the_leases_ahead():
    async def work(pool):
        hub, runner = Hub(2), Runner()
        runner.exits["1"] = "break"
        hub.let.set()
        serving = Worker(hub, runner, pool, "w")
        hub.count = 2
        task = asyncio.ensure_future(serving.run())
        while not hub.reports:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert hub.reports == ["1"]
        assert serving.leases == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    serve(work)


def test_a_lost_hub_ends_it():
    class Gone(Hub):
        async def call(self, op, **request):
            raise HubDied("gone")

    async def work(pool):
        with pytest.raises(HubDied):
            await Worker(Gone(1), Runner(), pool, "w").run()

    serve(work)


class Killed(Hub):
    """Gone with the first report, for the second time of asking too."""

    async def call(self, op: str, *, shaped: bool = True, **request):
        if op == "depin_report":
            self.reports.append(request["report"]["lease_id"])
            raise HubDied("gone")
        if op == "depin_lease" and self.given == self.count:
            await asyncio.Event().wait()
        return await super().call(op, shaped=shaped, **request)


def test_finished_leases_outlive_their_hub():
    async def work(pool):
        killed, runner = Killed(2), Runner()
        serving = Worker(killed, runner, pool, "w")
        working = asyncio.ensure_future(serving.work())
        with pytest.raises(HubDied):
            await serving.serve(killed)
        while len(runner.ran) < 2:
            await asyncio.sleep(0)
        assert serving.held == ["1", "2"]
        assert (runner.refusals, runner.acceptances) == ([], [])
        hub = Hub(2)
        hub.given = 2
        hub.let.set()
        await serving.returned(["1", "2"], [])
        await serving.serve(hub)
        assert hub.reports == runner.acceptances == ["1", "2"]
        working.cancel()

    serve(work)


def test_a_lease_that_the_next_hub_does_not_know_is_dropped():
    async def work(pool):
        killed, runner = Killed(2), Runner()
        serving = Worker(killed, runner, pool, "w")
        working = asyncio.ensure_future(serving.work())
        with pytest.raises(HubDied):
            await serving.serve(killed)
        while len(runner.ran) < 2:
            await asyncio.sleep(0)
        await serving.returned([], [])
        hub = Hub(0)
        hub.let.set()
        serving_again = asyncio.ensure_future(serving.serve(hub))
        while serving.held:
            await asyncio.sleep(0)
        await serving_again
        assert hub.reports == []
        assert runner.refusals == ["1", "2"]
        working.cancel()

    serve(work)


def test_an_accepted_report_is_handed_in_again_where_the_killed_hub_had_not_merged_it():
    async def work(pool):
        first, runner = Hub(2), Runner()
        first.let.set()
        serving = Worker(first, runner, pool, "w")
        working = asyncio.ensure_future(serving.work())
        await serving.serve(first)
        assert first.reports == serving.held == ["1", "2"]
        await serving.returned(["2"], ["2"])
        hub = Hub(1)
        hub.given = 1
        hub.let.set()
        again = asyncio.ensure_future(serving.serve(hub))
        for _ in range(200):
            await asyncio.sleep(0)
        assert hub.reports == [], "its run waits for its notebook"
        serving._later.clear()
        await serving._tell()
        await again
        assert hub.reports == ["2"]
        assert runner.acceptances == ["1", "2"], "once each"
        assert runner.refusals == []
        working.cancel()

    serve(work)
