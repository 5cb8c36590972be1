"""What a kill or a full disk leaves behind is gone after the hub's next start, and nothing else is."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from depin_nb.core.errors import DiskFull
from depin_nb.hub.records import blobs, resumable
from depin_nb.hub.records.blobs import write_atomic

from .fleet import LOCAL, FakeWorker, Hub, Kernel, first_state, nobody_came


def test_a_full_disk_keeps_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomic(tmp_path / "a", b"before")
    monkeypatch.setattr(blobs.os, "fsync", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        write_atomic(tmp_path / "a", b"after")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"before")]


def test_files_that_the_journal_does_not_name_go_at_the_next_start(tmp_path: Path):
    async def killed() -> str:
        hub = Hub(tmp_path)
        FakeWorker(hub, "a").start()
        kernel = await Kernel.open(hub)
        await kernel.enter(hub.spec(LOCAL, 30), first_state())
        await kernel.loop(30)
        hub.kill()
        return kernel.run_id

    async def started(run_id: str) -> None:
        hub = Hub(tmp_path)
        assert await hub.coordinator.recover() == []
        conn = hub.journal.connection
        assert {p.name for p in (tmp_path / "replays" / run_id).iterdir()} == {Path(f).name for f in resumable.logs_of(conn, run_id)}
        row = hub.journal.run(run_id)
        assert row.resumable
        assert row.version > 1
        states = {p.name for p in (tmp_path / "states" / run_id).iterdir()}
        assert states == {f"v{row.version - i:06d}.state" for i in range(3)}, "it may go on"
        await nobody_came(hub)
        states = {p.name for p in (tmp_path / "states" / run_id).iterdir()}
        assert states == {f"v{row.version:06d}.state"}
        assert conn.execute("SELECT reserved_units FROM runs").fetchone() == (0,)
        hub.kill()

    run_id = asyncio.run(asyncio.wait_for(killed(), 60))
    assert len(list((tmp_path / "states" / run_id).iterdir())) > 1, "a killed hub prunes nothing: the test would show nothing"
    for name in (f"states/{run_id}/v000099.state", f"states/{run_id}/.v000100.state.1.tmp", f"replays/{run_id}/v000099.logs"):
        (tmp_path / name).write_bytes(b"never committed")
    asyncio.run(asyncio.wait_for(started(run_id), 60))
