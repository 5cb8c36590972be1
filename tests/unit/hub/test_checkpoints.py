"""Checkpoints: written while a run goes on, atomically, few are kept, and they load where this package isn't."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.errors import CheckpointError
from depin_nb.core.state import BUFFER, CARRIED, COUNTER, INNER, PARAM, RNG, STEP, State
from depin_nb.hub.versions import checkpoint_files
from depin_nb.hub.versions.checkpoint_files import CheckpointFiles, Told, best, newest_whole, read
from depin_nb.hub.versions.checkpoints import AT_ENTRY_ENDS_S, EVERY_S, LAST_KEPT, due
from depin_nb.loop.ship.objects import Roots

from .fleet import LOCAL, SOLO, FakeWorker, Kernel, first_state, hub_in

PLAIN = """
import json, sys
class Refused:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "depin_nb":
            raise ImportError("not here")
sys.meta_path.insert(0, Refused())
try:
    import depin_nb
    raise SystemExit("it is importable")
except ImportError:
    pass
import torch
torch.set_num_threads(1)
folder = sys.argv[1]
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
optimizer = torch.optim.AdamW(model.parameters())

from safetensors.torch import load_file
model.load_state_dict(load_file(f"{folder}/model.safetensors"))

info = json.load(open(f"{folder}/checkpoint.json"))
state = optimizer.state_dict()
for key, tensor in load_file(f"{folder}/optimizer.safetensors").items():
    index, name = key.split("/")
    state["state"].setdefault(int(index), {})[name] = tensor
for group, told in zip(state["param_groups"], info["optimizers"]["optimizer"]["groups"]):
    group.update(told)
optimizer.load_state_dict(state)

x = torch.arange(12.0).reshape(4, 3)
optimizer.zero_grad()
model(x).square().mean().backward()
optimizer.step()
print(json.dumps([p.tolist() for p in model.parameters()]))
"""


def told(version: int, loss: float | None = None, run: str = "run-1") -> Told:
    return Told(run, version, 1, 10 * version, 80 * version, loss, 1.0)


def small() -> State:
    return State({"model/w": torch.ones(3)}, {"model/w": PARAM})


def test_they_load_in_plain_pytorch_without_this_package(tmp_path: Path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.9))
    x = torch.arange(12.0).reshape(4, 3)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    state = Roots(modules={"model": model}, optimizers={"optimizer": optimizer}).read({}, rng=True)
    folder = CheckpointFiles(tmp_path).write(state, told(7, 0.5))
    step()
    environment = {k: v for k, v in os.environ.items() if k != "DEPIN_HOME"}
    done = subprocess.run([sys.executable, "-c", PLAIN, str(folder)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [p.tolist() for p in model.parameters()]
    found = read(folder)
    assert (found.version, found.loss, found.torch_version) == (7, 0.5, torch.__version__)
    assert found.state_dict().keys() == model.state_dict().keys()
    info = json.loads((folder / "checkpoint.json").read_bytes())
    assert {"run", "version", "entry", "iteration", "samples", "loss", "torch", "program", "source"} <= info.keys()


def test_everything_of_a_state_is_in_it(tmp_path: Path):
    shared = torch.arange(6.0)
    tensors = {
        "netG/w": shared[:3], "netG/again": shared[:3], "netD/n": torch.tensor(3), "netD/mean": torch.ones(2, dtype=torch.bfloat16),
        "opt['a/b']/0/exp_avg": torch.ones(2), "opt/0/step": torch.tensor(4.0), "free": torch.ones(1), "rng/torch": torch.ones(5).byte(),
        "netG/w.grad": torch.zeros(3), "odd/c": torch.ones(2, dtype=torch.complex128), "empty/e": torch.zeros(0, 4),
    }  # fmt: skip
    kinds = [PARAM, PARAM, COUNTER, BUFFER, INNER, STEP, PARAM, RNG, CARRIED, PARAM, PARAM]
    plain = {
        "opt/groups": [{"lr": 0.1, "betas": (0.9, float("inf"))}],
        "opt/state": {0: {"old": [torch.ones(2)]}},
        "rng/python": (3, (1,), None),
    }
    state = State(tensors, dict(zip(tensors, kinds, strict=True)), plain)
    folder = CheckpointFiles(tmp_path).write(state, told(1))
    found = read(folder)
    assert set(found.models) == {"netG", "netD", "empty"}
    assert torch.equal(found.state_dict("netG")["again"], shared[:3])
    assert found.state_dict("netD")["mean"].dtype is torch.bfloat16
    assert found.state_dict("empty")["e"].shape == (0, 4)
    with pytest.raises(KeyError, match="netD"):
        found.state_dict()
    info = json.loads((folder / "checkpoint.json").read_bytes())
    assert info["left_out"] == ["c"]
    assert info["optimizers"]["opt"]["groups"] == [{"lr": 0.1, "betas": [0.9, "inf"]}]
    assert info["optimizers"]["opt"]["state"] == {"0": {"old": [{"tensor": "plain/0"}]}}
    assert found.whole()


@pytest.mark.parametrize("label", ["../../x", "/etc/passwd", "a" * 300, "other", "", "nets['a']", "Model", ".hidden", "a/../b"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, label: str):
    state = State({f"{label}/w": torch.ones(1), "model/w": torch.ones(1)}, {f"{label}/w": PARAM, "model/w": PARAM})
    folder = CheckpointFiles(tmp_path / "runs").write(state, told(1))
    assert read(folder).whole()
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}
    assert all(p.parent == folder for p in tmp_path.rglob("*.safetensors"))


def test_the_last_and_the_best_are_kept(tmp_path: Path):
    files = CheckpointFiles(tmp_path)
    for version, loss in enumerate([3.0, 1.0, None, 2.0, 1.5, 1.2]):
        files.write(small(), told(version, loss))
        files.keep("run-1", 2)
    assert [c.version for c in files.all("run-1")] == [1, 4, 5]
    assert best(files.all("run-1")).version == 1  # type: ignore[union-attr]
    assert best([]) is None
    assert files.all("run-2") == []


@pytest.mark.parametrize("point", ["save", "info", "rename"])
def test_it_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str):
    files = CheckpointFiles(tmp_path)
    files.write(small(), told(1))

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    if point == "rename":
        monkeypatch.setattr(Path, "rename", full)
    else:
        monkeypatch.setattr(checkpoint_files, "_digest" if point == "save" else "_write", full)
    with pytest.raises(OSError, match="No space"):
        files.write(small(), told(2))
    monkeypatch.undo()
    assert [p.name for p in files.path("run-1").iterdir()] == ["000001"]
    # what a killed write leaves is no checkpoint, and goes with the next one
    (files.path("run-1") / ".000003.1.tmp").mkdir()
    files.write(small(), told(2))
    files.keep("run-1", 3)
    assert sorted(p.name for p in files.path("run-1").iterdir()) == ["000001", "000002"]


def test_damage_is_found(tmp_path: Path):
    files = CheckpointFiles(tmp_path)
    older, newer = files.write(small(), told(1)), files.write(small(), told(2))
    data = (newer / "model.safetensors").read_bytes()
    (newer / "model.safetensors").write_bytes(data[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="aren't those") as caught:
        read(newer).state_dict()
    assert caught.value.hint
    assert newest_whole(files.all("run-1")).path == older  # type: ignore[union-attr]
    for text in ("", "[]", "{}", json.dumps({**json.loads((older / "checkpoint.json").read_text()), "files": {"../x.safetensors": "0"}})):
        (older / "checkpoint.json").write_text(text)
        with pytest.raises(CheckpointError):
            read(older)
    assert [c.version for c in files.all("run-1")] == [2]


@given(since=st.floats(0, 1e6), took=st.floats(0, 1e4))
def test_writing_takes_a_bounded_share_of_the_time(since: float, took: float):
    for end in (False, True):
        if due(since, took, entry_end=end):
            assert took <= 0.0501 * since
            assert since >= (AT_ENTRY_ENDS_S if end else EVERY_S)


def test_a_run_writes_them_as_it_goes_and_at_its_end(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            files = hub.coordinator.checkpoints.files

            def versions() -> list[int]:
                return [c.version for c in files.all(kernel.run_id)]

            for epoch in range(5):
                await kernel.enter(hub.spec(LOCAL, 10), first_state() if epoch == 0 else None)
                await kernel.loop(10)
                await kernel.close()
                known = hub.coordinator.checkpoints._of(hub.coordinator.runs[kernel.run_id])
                if known.task is not None:
                    await known.task
                assert bool(versions()) == (epoch >= 1)  # the first one ended at once: nothing is due yet
                hub.clock.at_s += 2 * AT_ENTRY_ENDS_S
                known.took_s = 0.0  # this machine's, and not the fake clock's
            newest = hub.coordinator.runs[kernel.run_id].version
            await kernel.finish()
            found = files.all(kernel.run_id)
            assert found[-1].version == newest
            assert LAST_KEPT <= len(found) <= LAST_KEPT + 1
            assert all(c.loss is not None and c.whole() for c in found)
            assert found[-1].told.iteration == 50
            assert int(found[-1].state_dict("bn")["n"]) == 50
            told_of = [e for e in hub.journal.events(kernel.run_id) if e.kind == "checkpoint"]
            assert [e.data["version"] for e in told_of][-1] == newest

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_disk_that_takes_none_is_said_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()

            def full(*_: Any) -> Any:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(hub.coordinator.checkpoints.files, "write", full)
            kernel = await Kernel.open(hub)
            for epoch in range(3):
                hub.clock.at_s += EVERY_S
                await kernel.enter(hub.spec(SOLO, 10), first_state() if epoch == 0 else None)
                assert await kernel.loop(10) == "running"
                await kernel.close()
            status = await kernel.finish()
            assert status["state"] == "finished"
            assert [n for n in status["notices"] if "No space left" in n] == [
                "A checkpoint could not be written ([Errno 28] No space left on device); training goes on without."
            ]
            assert hub.coordinator.checkpoints.files.all(kernel.run_id) == []

    asyncio.run(asyncio.wait_for(main(), 60))


def test_replaced_versions_stay_as_they_are(tmp_path: Path):
    files = CheckpointFiles(tmp_path)
    folder = files.write(small(), told(1, 1.0))
    assert files.write(small(), replace(told(1), loss=2.0)) == folder
    assert read(folder).loss == 1.0
