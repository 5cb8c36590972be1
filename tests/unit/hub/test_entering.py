"""An entry opens on the newest version's slots and the kernel's own; a hub that hasn't the kernel's version asks for the whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import torch

from depin_nb.core.state import State
from depin_nb.training.downlink import digest_of
from depin_nb.training.entering import inner_from_bytes, slot_digests, without

from .fleet import LOCAL, SOLO, FakeWorker, Kernel, first_state, hub_in


def in_time(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def test_what_the_kernel_leaves_out_comes_from_the_newest_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "w").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 10), first_state())
            await kernel.loop(10)
            newest = await kernel.close()
            known = slot_digests(newest)
            newest.tensors["model/b"][2] = 7.0
            part, same = without(newest, known)
            assert list(part.tensors) == ["model/b"]
            spec = hub.spec(LOCAL, 5).to_dict()
            wrong = await kernel.ops.entry_open(kernel.run_id, spec, part.to_bytes(), same={**same, "model/w": bytes(16)})
            assert wrong == {"whole": True}
            assert hub.coordinator.runs[kernel.run_id].entry is None
            opened = await kernel.ops.entry_open(kernel.run_id, spec, part.to_bytes(), same=same)
            begun = State.from_bytes((await kernel.ops.state(kernel.run_id, opened["version"]))["state"])
            assert digest_of(begun) == digest_of(newest)
            kernel.entry = opened["entry"]
            await kernel.loop(5)
            ended = await kernel.close()
            assert ended.tensors["bn/n"].item() == 15
            assert not torch.equal(ended.tensors["model/w"], newest.tensors["model/w"])
            await kernel.finish()

    in_time(scenario())


def test_workers_go_on_with_their_own_optimizer_state_until_the_notebook_touches_it(tmp_path: Path) -> None:
    steps = replace(LOCAL, down_bits=4)

    async def scenario() -> None:
        async with hub_in(tmp_path) as hub:
            worker = FakeWorker(hub, "w").start()
            kernel = await Kernel.open(hub)
            run = hub.coordinator.runs[kernel.run_id]

            async def entry(state: State | None, strategy=steps) -> tuple[dict, dict]:
                """The answers to a worker that has its own, and to one that hasn't."""
                await kernel.enter(hub.spec(strategy, 10), state)
                return tuple([await worker.ops.entry(worker.address, kernel.run_id, kernel.entry, own) for own in (True, False)])

            async def done() -> State:
                await kernel.loop(10)
                return await kernel.close()

            own, new = await entry(first_state())
            assert own.keys() == new.keys() == {"spec"}
            ended = await done()
            own, new = await entry(ended)
            assert own["own_inner"]
            assert "inner" not in own
            inner = inner_from_bytes(new["inner"], max_bytes=1 << 20)
            torch.testing.assert_close(inner.tensors["opt/exp_avg"], ended.tensors["opt/exp_avg"], rtol=2**-8, atol=0)
            assert inner.tensors["opt/step"] == ended.tensors["opt/step"]
            ended = await done()
            assert run.reference is not None
            assert run.reference.state is not None
            assert "opt/exp_avg" not in run.reference.state.tensors  # it never travelled down
            ended.tensors["opt/exp_avg"][1] = 9.0
            own, new = await entry(ended)
            assert own.keys() == new.keys() == {"spec"}
            await done()
            assert run.reference.state.tensors["opt/exp_avg"][1] == 9.0
            own, new = await entry(None, SOLO)
            assert own.keys() == new.keys() == {"spec"}  # solo: the version is exact
            await done()
            await kernel.finish()

    in_time(scenario())


def test_another_strategy_for_the_same_loop_is_told(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        async with hub_in(tmp_path) as hub:
            kernel = await Kernel.open(hub)
            for number, (place, strategy) in enumerate([("1", LOCAL), ("2", SOLO), ("1", LOCAL), ("1", replace(LOCAL, name="sparse"))], 1):
                about = {"number": number, "where": place, "strategy": f"{strategy.name}: why"}
                state = first_state().to_bytes()
                await kernel.ops.entry_open(kernel.run_id, hub.spec(strategy, 5).to_dict(), state, about)
            return (await kernel.finish())["notices"]

    assert [notice for notice in in_time(scenario()) if "From here on" in notice] == ["From here on sparse: why"]
