"""A worker measures its link, with a simulated link on a fake clock and over the real RPC; what it says is checked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from distributed import Scheduler

from depin_nb.backends.base import profile
from depin_nb.core.errors import UsageError
from depin_nb.hub.leases.members import member_of
from depin_nb.hub.plugin import CoordinatorPlugin
from depin_nb.ledger.wallet import Wallet
from depin_nb.network.shaping import Link
from depin_nb.worker.link import HubLink

from .fleet import FakeClock, hub_in


class Sleeper(FakeClock):
    """A clock that sleeping moves on, however many sleep: each to its own end, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeping: list[tuple[float, int, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        done = asyncio.get_running_loop().create_future()
        self.sleeping.append((self.at_s + seconds, len(self.sleeping), done))
        await done

    async def pass_time(self) -> None:
        """Wakes who sleeps, the earliest first, once all else has come to rest."""
        while True:
            for _ in range(200):
                await asyncio.sleep(0)
            if self.sleeping:
                at_s, _, done = min(self.sleeping)
                self.sleeping = [entry for entry in self.sleeping if entry[2] is not done]
                self.at_s = max(self.at_s, at_s)
                done.set_result(None)


class Direct:
    """The hub's operation without a network, so that only the simulated link takes time."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    async def depin_link(self, **request: Any) -> Any:
        return self.ops.link(**request)

    async def depin_report(self, **request: Any) -> Any:
        return {"accepted": True}

    async def close_rpc(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("kind", ["phone", "laptop", "single-board"])
def test_a_simulated_link_is_measured_as_it_is(tmp_path: Path, kind: str) -> None:
    async def scenario() -> dict[str, float]:
        async with hub_in(tmp_path) as hub:
            clock, device = Sleeper(), profile(kind)
            link = Link(device.up_mbit_s, device.down_mbit_s, device.latency_ms / 1000, clock=clock, sleep=clock.sleep)
            measuring = HubLink("tcp://127.0.0.1:1", "tcp://w", link, clock=clock)
            await measuring.close()
            measuring._rpc = Direct(hub.coordinator.workers)
            passing = asyncio.ensure_future(clock.pass_time())
            try:
                return await asyncio.wait_for(measuring.measured(), 60)
            finally:
                passing.cancel()

    measured, device = asyncio.run(scenario()), profile(kind)
    assert measured["up_mbit_s"] == pytest.approx(device.up_mbit_s, rel=0.02)
    assert measured["down_mbit_s"] == pytest.approx(device.down_mbit_s, rel=0.02)
    assert measured["latency_ms"] == pytest.approx(device.latency_ms, rel=0.02)


def test_a_link_that_became_another_is_measured_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with hub_in(tmp_path) as hub:
            clock = Sleeper()

            def link(up: float) -> Link:
                return Link(up, 50.0, 0.04, clock=clock, sleep=clock.sleep)

            worker = HubLink("tcp://127.0.0.1:1", "tcp://w", link(20.0), clock=clock)
            await worker.close()
            worker._rpc = Direct(hub.coordinator.workers)
            passing = asyncio.ensure_future(clock.pass_time())
            try:
                facts = {"name": "w", "link": await worker.measured()}
                hub.coordinator.workers.join("tcp://w", "phone", Wallet.new("w").address, facts)
                worker._link = link(2.0)
                clock.at_s += 3600
                for _ in range(2):
                    assert await worker.changed() is None
                    await worker.call("depin_report", report={"change": bytes(1 << 20)})
                found = await worker.changed()
                assert found is not None
                assert found["up_mbit_s"] == pytest.approx(2.0, rel=0.02)
                assert await worker.changed() is None
                asked = asyncio.ensure_future(hub.coordinator.workers.lease("tcp://w", 5, (), found))
                await asyncio.sleep(0)
                assert hub.coordinator.kernel.needs({})["links"]["w"]["up_mbit_s"] == found["up_mbit_s"]
                asked.cancel()
                member = hub.coordinator.members["tcp://w"]
                member.linked({**found, "up_mbit_s": float("nan")})
                assert member.up_mbit_s == found["up_mbit_s"]
            finally:
                passing.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_link_is_measured_over_rpc(tmp_path: Path) -> None:
    async def scenario() -> dict[str, float]:
        async with hub_in(tmp_path) as hub, Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
            plugin = CoordinatorPlugin(hub.coordinator)
            await plugin.start(scheduler)
            measuring = HubLink(scheduler.address, "tcp://w", Link(0, 0, 0))
            try:
                return await asyncio.wait_for(measuring.measured(), 60)
            finally:
                await measuring.close()
                await plugin.close()

    measured = asyncio.run(scenario())
    assert member_of("tcp://w", "phone", "wallet", {"link": measured}, "s", 0.0).up_mbit_s == measured["up_mbit_s"] > 0


def test_the_hub_sends_no_more_than_a_probe(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with hub_in(tmp_path) as hub:
            ops = hub.coordinator.workers
            assert len(ops.link("tcp://stranger", want=1000)["data"]) == 1000
            for request in ({"want": 1 << 30}, {"want": -1}, {"want": True}, {"data": bytes(1 << 20)}):
                with pytest.raises(UsageError):
                    ops.link("tcp://stranger", **request)

    asyncio.run(scenario())


GOOD = {"up_mbit_s": 20, "down_mbit_s": 50.0, "latency_ms": 40.0}


@pytest.mark.parametrize(
    "said",
    [None, "fast", {}, {**GOOD, "up_mbit_s": 0}, {**GOOD, "up_mbit_s": float("nan")}, {**GOOD, "down_mbit_s": float("inf")},
     {**GOOD, "latency_ms": True}, {**GOOD, "more": 1}, {**GOOD, "latency_ms": "40"}],
)  # fmt: skip
def test_a_link_that_cannot_be_is_not_believed(said: Any) -> None:
    def member(link: Any):
        return member_of("tcp://w", "phone", "wallet", {"link": link}, "s", 0.0)

    assert (member(GOOD).up_mbit_s, member(GOOD).latency_ms) == (20.0, 40.0)
    assert (member(said).up_mbit_s, member(said).down_mbit_s, member(said).latency_ms) == (0.0, 0.0, 0.0)
