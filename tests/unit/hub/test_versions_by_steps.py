"""New versions reach workers as steps from what they hold; newcomers and those left behind get the version whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import torch

from depin_nb.core.state import State
from depin_nb.hub.versions.references import MOST_STEPS, Reference
from depin_nb.hub.versions.spool import Spool
from depin_nb.training.downlink import apply_step, digest_of

from .fleet import LOCAL, FakeWorker, Kernel, first_state, hub_in

STEPS = replace(LOCAL, down_bits=4)


def version(at: int) -> State:
    weights = torch.randn(5000, generator=torch.Generator().manual_seed(0)) + 0.01 * at
    return State({"w": weights}, {"w": "param"}, {"at": at})


def in_time(work):
    return asyncio.run(asyncio.wait_for(work, 60))


async def here(function, *args):
    return function(*args)


def test_a_run_travels_by_steps_and_counts_everything(tmp_path: Path) -> None:
    async def scenario() -> None:
        down = {}
        for strategy in (LOCAL, STEPS):
            home = tmp_path / str(strategy.down_bits)
            home.mkdir()
            async with hub_in(home) as hub:
                workers = [FakeWorker(hub, f"w{i}").start() for i in range(3)]
                kernel = await Kernel.open(hub)
                await kernel.enter(hub.spec(strategy, 90), first_state())
                await kernel.loop(90)
                state = await kernel.close()
                assert state.tensors["bn/n"].item() == 90
                assert sorted(kernel.counted()) == list(range(90))
                await kernel.enter(hub.spec(strategy, 30), None)  # the notebook changed nothing: steps go on
                await kernel.loop(30)
                state = await kernel.close()
                state.plain["lr"] = 0.05  # nor does it here, but for what is small
                await kernel.enter(hub.spec(strategy, 30), state)
                await kernel.loop(30)
                assert (await kernel.close()).plain == {"lr": 0.05}
                fetched = [kind for worker in workers for kind in worker.fetched]
                down[strategy.down_bits] = (await kernel.finish())["bytes_down"]
                if strategy is STEPS:
                    assert fetched.count("whole") == len(workers)
                    assert "steps" in fetched
                    assert (
                        len({worker.held[1] for worker in workers if worker.held and worker.held[0] == max(w.held[0] for w in workers)})
                        == 1
                    )
        assert down[4] < down[32] / 1.5  # of 600 weights, beside slots that are too small to be quantised

    in_time(scenario())


def test_what_the_notebook_changed_travels_exactly(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with hub_in(tmp_path) as hub:
            worker = FakeWorker(hub, "w").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(STEPS, 10), first_state())
            await kernel.loop(10)
            state = await kernel.close()
            state.tensors["model/w"] = torch.randn(600)
            await kernel.enter(hub.spec(STEPS, 5), state)
            await kernel.loop(5)
            assert worker.fetched[-1] == "whole"
            assert worker.held is not None
            assert torch.equal(worker.held[2].tensors["model/w"], state.tensors["model/w"])
            await kernel.close()
            await kernel.finish()

    in_time(scenario())


def test_a_newcomer_gets_the_reference_whole_and_then_steps(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "first").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(STEPS, 60), first_state())
            late = FakeWorker(hub, "late")
            looping = asyncio.ensure_future(kernel.loop(60, batch=20))
            while hub.coordinator.runs[kernel.run_id].merges < 2:
                await asyncio.sleep(0)
            late.start()
            assert await looping == "running"
            assert late.fetched[0] == "whole"
            assert set(late.fetched[1:]) <= {"steps"}
            assert (await kernel.close()).tensors["bn/n"].item() == 60
            await kernel.finish()

    in_time(scenario())


def test_whoever_is_a_little_behind_gets_several_steps_and_one_too_far_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        reference = Reference(4, Spool(tmp_path))
        held = []
        for at in range(MOST_STEPS + 3):
            await reference.advance(at, version(at), here)
            assert reference.state is not None
            held.append((at, reference.digest, reference.state))
        newest = held[-1][0]

        def way(at: int, to: int = newest, digest: bytes | None = None):
            return reference.way({"version": at, "digest": digest or held[at][1]}, to)

        steps, digest = way(newest - 3)
        state = held[newest - 3][2]
        for data in steps:
            state = apply_step(state, data, max_bytes=1 << 20)
        assert len(steps) == 3
        assert digest_of(state) == digest == reference.digest
        assert way(newest) == ([], reference.digest)
        assert len(way(newest - 3, newest - 1)[0]) == 2  # a lease on an older version
        assert way(0) is None
        assert way(newest - 3, digest=bytes(16)) is None
        assert way(newest, digest=bytes(16)) is None
        assert way(newest, newest - 1) is None
        for have in (None, [], {}, {"version": [1], "digest": {}}, {"version": newest}):
            assert reference.way(have, newest) is None
        assert sum(len(step.data) for step in reference.steps) <= version(0).nbytes() / 2
        await reference.advance(newest - 1, version(0), here)  # an older question comes late
        assert reference.version == newest

    in_time(scenario())
