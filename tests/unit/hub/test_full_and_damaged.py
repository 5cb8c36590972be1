"""A full disk and a damaged journal: a typed error names the newest good checkpoint and the next step; nothing merged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from depin_nb.core.errors import DiskFull, JournalDamaged, JournalError, NoSuchRun
from depin_nb.core.state import State
from depin_nb.core.storage import is_damaged, is_full
from depin_nb.hub.records.checking import check
from depin_nb.hub.records.journal import Journal
from depin_nb.hub.trouble import newest_good
from depin_nb.hub.versions.checkpoint_files import CheckpointFiles, Told
from depin_nb.hub.versions.checkpoints import EVERY_S

from .fleet import LOCAL, SOLO, FakeWorker, Hub, Kernel, first_state, hub_in, nobody_came
from .test_resuming import resumed

TOTAL = 400  # iterations: far more than are merged before the disk is full
ROOT = Path(__file__).parents[3]


def proven(hub: Hub, run_id: str) -> None:
    assert check(hub.journal.rows(run_id)).problems == ()


async def until_full(hub: Hub, kernel: Kernel, fill: Any, at: int, total: int = TOTAL) -> dict[str, Any]:
    """Trains with one checkpoint taken; calls `fill` once `at` iterations are merged. Returns the answer that ended the loop."""
    hub.coordinator.kernel.units(kernel.run_id, kernel.entry, [(i, b"%d" % i, 2) for i in range(total)], True)
    got, filled = 0, False
    while True:
        answer = await asyncio.wait_for(kernel.ops.results(kernel.run_id, kernel.entry, got, 20), 30)
        got += sum(len(lease["logs"]) for lease in answer["leases"])
        if answer["state"] != "running" or got >= total:
            return answer
        if got >= at and not filled:
            filled = True
            fill()
        hub.clock.at_s += EVERY_S


async def goes_on_after(home: Path, run_id: str, total: int = TOTAL) -> None:
    """Another hub on the same files, with room: the run is interrupted, proven, and can be resumed to its end."""
    async with hub_in(home) as hub:
        await hub.coordinator.recover()
        await nobody_came(hub)
        row = hub.journal.run(run_id)
        assert row.state in ("failed", "interrupted")
        assert row.settled
        proven(hub, run_id)
        FakeWorker(hub, "z").start()
        second, answer = await resumed(hub, run_id)
        done = answer["past"][-1]["merged"]
        newest = (await second.ops.kept(second.run_id, 1))["state"]
        opened = await second.ops.entry_open(second.run_id, hub.spec(SOLO, total, first=done).to_dict(), newest, {"number": 1})
        second.entry = opened["entry"]
        await second.loop(total, first=done)
        state = await second.close()
        assert int(state.tensors["bn/n"]) == total
        await second.finish()
        proven(hub, second.run_id)


@pytest.mark.parametrize(("strategy", "at"), [(SOLO, 3), (SOLO, 20), (LOCAL, 10)])
def test_a_journal_that_finds_no_room(tmp_path: Path, strategy: Any, at: int):
    async def main() -> str:
        hub = Hub(tmp_path)
        for name in "ab":
            FakeWorker(hub, name).start()
        kernel = await Kernel.open(hub)
        await kernel.enter(hub.spec(strategy, TOTAL), first_state())

        def fill() -> None:
            (pages,) = hub.journal.connection.execute("PRAGMA page_count").fetchone()
            hub.journal.connection.execute(f"PRAGMA max_page_count={pages}")

        answer = await until_full(hub, kernel, fill, at)
        assert answer["state"] == "failed"
        assert answer["error"]["type"] == "DiskFull"
        assert f"--resume {kernel.run_id}" in answer["error"]["hint"]
        assert "The newest good checkpoint is" in answer["error"]["hint"]
        version = hub.coordinator.runs[kernel.run_id].version
        with contextlib.suppress(DiskFull):  # what little it writes may still fit
            await kernel.close("error")
        # the kernel still gets the weights of the last merge
        state = State.from_bytes((await kernel.ops.state(kernel.run_id))["state"])
        assert int(state.tensors["bn/n"]) == hub.coordinator.runs[kernel.run_id].iterations > 0
        status = await kernel.finish("failed")
        assert status["state"] in ("failed", "interrupted")
        assert any("Free some space" in text for text in status["notices"])
        assert hub.coordinator.runs == {}, "nothing is left that would be tried again and again"
        assert hub.journal.run(kernel.run_id).version == version
        await hub.coordinator.close()
        await asyncio.gather(*hub.coordinator._tasks)
        hub.kill()
        return kernel.run_id

    async def all_of_it() -> None:
        await goes_on_after(tmp_path, await main())

    asyncio.run(asyncio.wait_for(all_of_it(), 60))


def test_a_transaction_leaves_the_connection_usable(tmp_path: Path):
    """SQLite rolls back by itself when the disk is full: a second ROLLBACK must not hide why, and the next transaction must begin."""
    journal = Journal(tmp_path / "journal.sqlite")
    (pages,) = journal.connection.execute("PRAGMA page_count").fetchone()
    journal.connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskFull, match="the disk is full") as caught, journal.transaction() as connection:
        connection.execute("INSERT INTO events (run_id, kind, at, data) VALUES ('r', 'k', 0, ?)", ("x" * 200_000,))
    assert caught.value.path == str(journal.path)
    journal.connection.execute("PRAGMA max_page_count=100000")
    with journal.transaction() as connection:
        connection.execute("INSERT INTO events (run_id, kind, at, data) VALUES ('r', 'k', 0, '{}')")
    assert len(journal.events("r")) == 1
    journal.close()


ON_TMPFS = """
import asyncio, os, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
home, seed = Path(sys.argv[2]), int(sys.argv[3])
from tests.unit.hub.fleet import LOCAL, SOLO, FakeWorker, Hub, Kernel, first_state
from tests.unit.hub.test_full_and_damaged import TOTAL, goes_on_after, until_full

rng = random.Random(seed)
ballast = home / "ballast"

def fill():
    left = rng.choice([0, 1, 2, 3, 5, 9, 17, 40]) * 4096
    file = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError as error:
        assert error.errno == 28, error
    os.ftruncate(file, max(0, os.fstat(file).st_size - left))
    os.close(file)

async def main():
    hub = Hub(home)
    for name in "ab":
        FakeWorker(hub, name).start()
    kernel = await Kernel.open(hub)
    await kernel.enter(hub.spec(rng.choice([SOLO, LOCAL]), TOTAL), first_state())
    answer = await until_full(hub, kernel, fill, rng.randrange(1, 40))
    if answer["state"] == "failed":
        assert answer["error"]["type"] == "DiskFull", answer["error"]
        assert "--resume" in answer["error"]["hint"] and "checkpoint" in answer["error"]["hint"], answer["error"]
    try:
        await kernel.close("error")
    except Exception as error:
        assert type(error).__name__ == "DiskFull", repr(error)
    status = await kernel.finish("failed")
    assert hub.coordinator.runs == {}
    await hub.coordinator.close()
    hub.kill()
    ballast.unlink()
    if hub_left := [p for p in home.rglob("*.tmp") if p.is_file()]:
        raise AssertionError(hub_left)
    return kernel.run_id, answer["state"], status["state"]

run_id, how, state = asyncio.run(asyncio.wait_for(main(), 60))
if how == "failed":
    asyncio.run(asyncio.wait_for(goes_on_after(home, run_id), 60))
print(how, state)
"""


def mounts(tmp_path: Path) -> bool:
    command = ["unshare", "-Urm", "sh", "-c", f"mount -t tmpfs -o size=64k none {tmp_path}"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_that_is_really_full(tmp_path: Path, seed: int):
    """A small tmpfs in a user namespace of its own, filled while a run goes on."""
    if not mounts(tmp_path):
        pytest.skip("this machine lets nobody mount a tmpfs in a user namespace")
    script = tmp_path / "script.py"
    script.write_text(ON_TMPFS)
    home = tmp_path / "home"
    home.mkdir()
    line = f'mount -t tmpfs -o size=6m none "{home}" && exec "$0" "$@"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", line, sys.executable, str(script), str(ROOT), str(home), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[0] in ("failed", "running")


def flipped(path: Path, seed: int) -> None:
    """One to eight bytes of a file changed, at places that the seed chooses."""
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def journalled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A state folder with a run and its checkpoint, its journal checkpointed into one file."""
    home = tmp_path_factory.mktemp("home")

    async def main() -> str:
        async with hub_in(home) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 20), first_state())
            await kernel.loop(20)
            await kernel.close()
            await kernel.finish()
            return kernel.run_id

    run_id = asyncio.run(asyncio.wait_for(main(), 60))
    conn = sqlite3.connect(home / "journal.sqlite")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    return home, run_id


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_are_found_or_harmless(journalled: tuple[Path, str], tmp_path: Path, seed: int):
    """Whatever is damaged: what can be read is read, everything else is a JournalError; then the checkpoint is named."""
    home, run_id = journalled
    (tmp_path / "runs").symlink_to(home / "runs")
    path = tmp_path / "journal.sqlite"
    path.write_bytes((home / "journal.sqlite").read_bytes())
    flipped(path, seed)
    try:
        journal = Journal(path, writing=seed % 2 == 0)
    except JournalError as error:
        told(error, home)
        return
    with contextlib.closing(journal):
        reads = journal.runs, lambda: journal.run(run_id), lambda: journal.events(run_id), journal.unfinished
        for read in (*reads, lambda: check(journal.rows(run_id))):
            try:
                read()
            except JournalError as error:
                told(error, home)
            except NoSuchRun:
                continue


def told(error: JournalError, home: Path) -> None:
    assert error.hint
    if isinstance(error, JournalDamaged):
        assert "000" in error.hint
        assert "runs/run-" in error.hint
        assert "Move the journal" in error.hint


def test_a_page_of_a_living_journal_is_damaged(tmp_path: Path):
    """The hub that writes on meets the damage at a merge: the run is interrupted, its weights are the last merge's, the hub goes on."""

    async def main() -> None:
        hub = Hub(tmp_path)
        FakeWorker(hub, "a").start()
        kernel = await Kernel.open(hub)
        await kernel.enter(hub.spec(SOLO, TOTAL), first_state())

        def damage() -> None:
            connection = hub.journal.connection
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name='merges'").fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
            with open(tmp_path / "journal.sqlite", "r+b") as file:
                file.seek((root - 1) * size)
                file.write(b"\xff" * size)
            connection.execute("PRAGMA shrink_memory")

        answer = await until_full(hub, kernel, damage, 5)
        assert answer["state"] == "failed"
        assert answer["error"]["type"] == "JournalDamaged"
        assert "The newest good checkpoint is" in answer["error"]["hint"]
        with pytest.raises(JournalError):
            hub.journal.run(kernel.run_id)
        await kernel.finish("failed")
        assert hub.coordinator.runs == {}
        assert newest_good(tmp_path).told.run == kernel.run_id  # type: ignore[union-attr]
        await hub.coordinator.close()
        hub.kill()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_newest_good_checkpoint_is_a_good_one(tmp_path: Path):
    files = CheckpointFiles(tmp_path / "runs")
    assert newest_good(tmp_path) is None
    import torch

    state = State({"model/w": torch.ones(3)}, {"model/w": "param"})
    for version, run in ((1, "run-1"), (2, "run-1"), (3, "run-2")):
        files.write(state, Told(run, version, 1, version, version, None, float(version)))
    assert newest_good(tmp_path).version == 3  # type: ignore[union-attr]
    assert newest_good(tmp_path, "run-1").version == 2  # type: ignore[union-attr]
    (files.path("run-2") / "000003" / "model.safetensors").write_bytes(b"")
    (files.path("run-1") / "000002" / "model.safetensors").unlink()
    assert newest_good(tmp_path).version == 1  # type: ignore[union-attr]


def test_what_counts_as_full(tmp_path: Path):
    assert is_full(OSError(28, "x"), tmp_path)
    assert is_full(OSError(122, "quota"), tmp_path)
    assert not is_full(OSError(13, "x"), tmp_path)
    assert not is_full(sqlite3.OperationalError("database is locked"), tmp_path)
    assert not is_damaged(sqlite3.OperationalError("database is locked"))
