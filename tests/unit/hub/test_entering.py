"""An entry opens on the newest version's slots and the kernel's own; a hub that hasn't the kernel's version asks for the whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from depin_nb.core.state import State
from depin_nb.training.downlink import digest_of
from depin_nb.training.entering import slot_digests, without

from .fleet import LOCAL, FakeWorker, Kernel, first_state, hub_in


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
