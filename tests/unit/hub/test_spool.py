"""Changes that wait for their merge: in bounded memory, in files without names, and refused before they wait if anything is wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError
from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import State
from depin_nb.hub.versions import spool as spools
from depin_nb.hub.versions.mapped import Mapped, Relief
from depin_nb.hub.versions.spool import Spool
from depin_nb.hub.versions.states import FileState, StateFiles
from depin_nb.training.compress import encode_change, read_change, same_bits
from depin_nb.training.merge import Contribution, OuterState, merge, merging

from .fleet import LOCAL, FakeWorker, Hub, Kernel, first_state

torch.set_num_threads(1)


def test_memory_holds_no_more_than_its_bound_and_files_have_no_names(tmp_path: Path) -> None:
    spool = Spool(tmp_path, memory_bytes=1000)
    data = [os.urandom(400) for _ in range(6)]
    held = [spool.put(each) for each in data]
    assert [h.in_memory for h in held] == [True, True, False, False, False, False]
    assert [bytes(h.open()[0]) for h in held] == data
    assert list(tmp_path.iterdir()) == []
    del held[0]
    assert spool.put(data[0]).in_memory, "what was dropped made room"
    big = os.urandom(spools.SEGMENT_BYTES + 5)
    assert bytes(spool.put(big).open()[0]) == big
    assert not spool.put(data[1] * 2).in_memory


def test_a_file_goes_with_the_last_change_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 8192)
    spool = Spool(tmp_path, memory_bytes=0)
    open_before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    held = [spool.put(b"x" * 5000) for _ in range(8)]
    view = held[0].open()[0]
    del held, spool
    assert bytes(view) == b"x" * 5000, "what is being read stays"
    del view
    if open_before is not None:
        assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_full_disk_keeps_changes_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spools.os, "pwrite", full)
    held = Spool(tmp_path, memory_bytes=0).put(b"data")
    assert held.in_memory
    assert bytes(held.open()[0]) == b"data"


def test_a_version_lies_in_its_file(tmp_path: Path) -> None:
    files = StateFiles(tmp_path / "states", mapped_from_bytes=1000)
    state = State(
        {"w": torch.randn(300_000), "n": torch.tensor(3), "e": torch.zeros(0)}, {"w": "param", "n": "counter", "e": "param"}, {"lr": 1}
    )
    files.write("run-1", 1, state.to_parts())
    back = files.open("run-1", 1)
    assert back.mapped is not None
    files.prune("run-1", [])
    back.mapped.release()
    assert all(same_bits(back.tensors[n], t) for n, t in state.tensors.items()), "also when the file is gone"
    assert (back.kinds, back.plain, back.to_bytes()) == (state.kinds, state.plain, state.to_bytes())
    back.tensors["w"][0] = 7.0  # never done; and if it were, no file would change
    files.write("run-1", 2, first_state().to_bytes())
    assert files.open("run-1", 2).mapped is not None
    assert StateFiles(tmp_path / "states").open("run-1", 2).mapped is None, "a small one is read"


def test_what_has_been_read_is_released(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 16))
    released: list[Mapped] = []

    class Watched(Mapped):
        def release(self) -> None:
            released.append(self)
            super().release()

    with path.open("rb") as file:
        mapped = Watched(file.fileno(), 1 << 16)
    relief = Relief()
    relief.add(mapped)
    relief(2 << 20)
    assert released == []
    relief(2 << 20)
    assert released == [mapped]
    assert bytes(mapped.view) == path.read_bytes()


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_a_merge_from_files_is_the_merge_in_memory(tmp_path: Path, bits: int, momentum: float) -> None:
    """Mapped base, spooled changes, streamed version: the same bits as with everything in memory."""
    g = torch.Generator().manual_seed(bits)
    shapes = {"w": (300, 1000), "odd": (4097,), "half": (700,), "b": (5,), "m": (9,)}
    base = State({n: torch.randn(s, generator=g) for n, s in shapes.items()}, dict.fromkeys(shapes, "param") | {"m": "buffer"}, {})
    base.tensors["half"] = base.tensors["half"].to(torch.bfloat16)
    base.tensors["wide"], base.kinds["wide"] = torch.randn(600, generator=g, dtype=torch.float64), "param"
    files, spool = StateFiles(tmp_path / "states", 0), Spool(tmp_path, 0)
    files.write("run-1", 0, base.to_parts())
    mapped = files.open("run-1", 0)
    config = StrategyConfig("local", solo=False, bits=bits, outer_momentum=momentum)
    outer = OuterState({"w": torch.ones(300, 1000), "odd": torch.ones(4097)}) if momentum else OuterState()
    here, there = [], []
    for i in range(3):
        new = State({n: t + torch.randn(t.shape, generator=g).to(t.dtype) for n, t in base.tensors.items()}, dict(base.kinds), {"lr": i})
        new.tensors["w"][10:] = base.tensors["w"][10:]  # thin
        new.tensors["adam"], new.kinds["adam"] = torch.rand(5000, generator=g), "inner"
        data = encode_change(base, new, bits=bits, include_inner=True)[0]
        held = spool.put(data)
        assert not held.in_memory
        here.append(Contribution(f"w{i}", 10 + i, i, read_change(data, base, max_bytes=1 << 24, bits=bits)))
        there.append(Contribution(f"w{i}", 10 + i, i, lambda held=held: read_change(held.open()[0], mapped, max_bytes=1 << 24)))
    state, after = merge(base, here, config, outer)
    relief = Relief()
    relief.add(mapped.mapped)
    following = merging(mapped, list(reversed(there)), config, outer, lambda nbytes: relief.now())
    files.write("run-1", 1, following.to_parts())
    streamed = files.open("run-1", 1)
    assert isinstance(streamed, FileState)
    assert set(streamed.tensors) == set(state.tensors) == {*base.tensors, "adam"}
    assert all(same_bits(t, streamed.tensors[n]) for n, t in state.tensors.items())
    assert streamed.plain == state.plain == {"lr": 2}
    files.write_outer("run-1", 1, following.outer.momentum)
    again = files.read_outer("run-1", 1)
    assert (again is not None) == bool(momentum)
    if again is not None:
        assert all(same_bits(t, again.momentum[n]) for n, t in after.momentum.items())
        assert set(again.momentum) == {"w", "odd", "half", "b", "wide"}
    # one at a time is what the mean change says, up to rounding
    dense = [c.read().decoded() for c in here]
    if bits != 32:
        mean = sum(d.deltas["w"] * (10 + i) / 33 for i, d in enumerate(dense)) + momentum * outer.momentum.get("w", torch.zeros(()))
        torch.testing.assert_close(state.tensors["w"], base.tensors["w"] + mean, rtol=1e-5, atol=1e-6)


def test_a_change_of_other_bits_is_refused() -> None:
    base = first_state()
    data, _ = encode_change(base, State({n: t + 1 for n, t in base.tensors.items()}, base.kinds, {}), bits=8, include_inner=False)
    read_change(data, base, max_bytes=1 << 20, bits=8)
    with pytest.raises(CodecError, match="8 bits where the strategy has 4"):
        read_change(data, base, max_bytes=1 << 20, bits=4)


def test_a_report_with_other_bits_is_refused_and_its_lease_given_again(tmp_path: Path) -> None:
    class Finer(FakeWorker):
        """Sends what would be right with 32 bits."""

        def report(self, *args: Any) -> dict[str, Any]:
            said = super().report(*args)
            return {**said, "change": encode({**decode(said["change"]), "bits": 32, "slots": {}})} if not self.hub.said else said

    async def main() -> None:
        hub = Hub(tmp_path)
        hub.said = []  # type: ignore[attr-defined]
        Finer(hub, "a").start()
        kernel = await Kernel.open(hub)
        await kernel.enter(hub.spec(LOCAL, 6), first_state())
        seen = hub.coordinator.workers._reports._rejected

        def rejected(run: Any, entry: Any, record: Any, error: CodecError) -> dict[str, Any]:
            hub.said.append(error.message)  # type: ignore[attr-defined]
            return seen(run, entry, record, error)

        hub.coordinator.workers._reports._rejected = rejected  # type: ignore[method-assign]
        await kernel.loop(6)
        assert hub.said == ["a change of 32 bits where the strategy has 4"]  # type: ignore[attr-defined]
        await kernel.close()
        await kernel.finish()
        await hub.coordinator.close()
        hub.kill()

    asyncio.run(asyncio.wait_for(main(), 60))


class HeldJobs(ThreadPoolExecutor):
    """Threads that stop in the middle of a merge until they are let go."""

    def __init__(self) -> None:
        super().__init__(2)
        self.inside, self.go = threading.Event(), threading.Event()

    def submit(self, function: Any, /, *args: Any, **named: Any) -> Any:
        if getattr(function, "__name__", "") != "_merge":
            return super().submit(function, *args, **named)

        def held() -> Any:
            self.inside.set()
            assert self.go.wait(30)
            return function(*args, **named)

        return super().submit(held)


def test_heartbeats_are_answered_while_a_merge_computes(tmp_path: Path) -> None:
    async def main() -> None:
        hub = Hub(tmp_path)
        jobs = hub.coordinator.executor = HeldJobs()
        for name in "ab":
            FakeWorker(hub, name).start()
        kernel = await Kernel.open(hub)
        await kernel.enter(hub.spec(LOCAL, 6), first_state())
        looping = asyncio.ensure_future(kernel.loop(6))
        while not jobs.inside.is_set():
            await asyncio.sleep(0)
        run = hub.coordinator.runs[kernel.run_id]
        address = next(iter(hub.coordinator.members))
        for _ in range(100):
            assert "go" in hub.coordinator.workers.alive(address, "")
            hub.coordinator.tick()
            await asyncio.sleep(0)
        assert run.merges == 0, "the merge hasn't ended"
        jobs.go.set()
        await looping
        assert run.merges > 0
        await kernel.close()
        await kernel.finish()
        await hub.coordinator.close()
        hub.kill()
        jobs.shutdown()

    asyncio.run(asyncio.wait_for(main(), 60))
