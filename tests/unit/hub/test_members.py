"""Who waits for a lease, and who may work for a run, is known without asking every worker; of many lanes some are drawn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from depin_nb.hub.leases.members import LANES_AT_ONCE, MAX_REJECTED, Members, Tally, drawn, member_of
from depin_nb.hub.leases.muster import Muster

from .fleet import LOCAL, FakeWorker, Kernel, first_state, hub_in


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def joined(members: Members, name: str):
    members[f"tcp://{name}"] = member_of(f"tcp://{name}", "phone", "w", {"name": name}, "s", 0.0)
    return members[f"tcp://{name}"]


def test_who_waits_is_known():
    async def main():
        members, call = Members(), asyncio.get_running_loop().create_future()
        a, b = joined(members, "a"), joined(members, "b")
        a.parked = call
        assert (list(members.parked), list(members.fresh)) == ([a.address], [a.address])
        members.looked()
        assert (list(members.parked), list(members.fresh)) == ([a.address], [])
        b.parked = call
        a.parked = None
        assert (list(members.parked), list(members.fresh)) == ([b.address], [b.address])
        assert members.pop(b.address) is b
        b.parked = call  # it has left: nobody looks at it any more
        assert not members.parked
        assert not members.fresh
        with pytest.raises(KeyError):
            del members[b.address]

    run(main())


def test_a_member_that_joins_again_replaces_itself():
    async def main():
        members = Members()
        old = joined(members, "a")
        old.parked = asyncio.get_running_loop().create_future()
        new = joined(members, "a")
        assert not members.parked
        old.parked = None
        new.parked = asyncio.get_running_loop().create_future()
        assert list(members.parked.values()) == [new]

    run(main())


def test_what_changes_who_may_work_is_noticed(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub:
            muster, members = hub.coordinator.muster, hub.coordinator.members
            a, b = FakeWorker(hub, "a").start(), FakeWorker(hub, "b").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 10), first_state())
            entered = hub.coordinator.runs[kernel.run_id]

            def able() -> list[str]:
                return [m.worker_id for m in muster.members(entered)]

            assert able() == ["a", "b"]
            for _ in range(MAX_REJECTED):
                members[a.address].refuse(kernel.run_id)
            assert able() == ["b"]
            members[a.address].forget(kernel.run_id)
            assert able() == ["a", "b"]
            entered.most_workers = 1
            entered.tally(members[b.address], hub.coordinator.prices)
            assert able() == ["b"], "who has worked for it stays"
            hub.coordinator.worker_lost(b.address)
            assert able() == ["a"]

    run(main())


def test_workers_are_listed_once_for_many_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found: list[str] = []
    listed = Muster._found
    monkeypatch.setattr(Muster, "_found", lambda self, run: found.append(run.run_id) or listed(self, run))

    async def main():
        async with hub_in(tmp_path) as hub:
            workers = [FakeWorker(hub, f"w{i}").start() for i in range(6)]
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 240), first_state())
            assert await kernel.loop(240) == "running"
            assert sum(len(w.leases) for w in workers) >= 40
            assert kernel.indices() == list(range(240))
        assert len(found) <= 2 + len(workers), (
            "they are listed anew only when one joins, leaves, is refused or has worked for the first time"
        )

    run(main())


def test_of_many_lanes_the_oldest_are_drawn():
    tallies = [Tally(f"w{i:03}", "phone", True, "a", "") for i in range(LANES_AT_ONCE + 10)]
    for tally in tallies:
        tally.began(0.0)
    first = drawn(tallies, 5.0)
    assert [bool(d.lane) for d in first] == [True] * LANES_AT_ONCE + [False] * 10
    assert [d.state for d in first] == ["working"] * len(tallies)
    second = drawn(tallies, 6.0)
    assert [d.lane[-1][1] for d in second] == [6.0] * (LANES_AT_ONCE - 10) + [5.0] * 10 + [6.0] * 10
    assert {d.lane[-1][1] for d in drawn(tallies, 9.0, at_once=len(tallies))} == {9.0}
