"""A run moves to another hub by its folder; a folder that isn't what a hub wrote changes nothing."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from depin_nb.cli import main
from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import JournalError, NoSuchRun, RunFolderError
from depin_nb.core.state import State
from depin_nb.hub.records import run_folder
from depin_nb.hub.records.checking import check
from depin_nb.hub.records.journal import Journal
from depin_nb.hub.records.moving import export_run, import_run
from depin_nb.hub.versions.checkpoint_files import CheckpointFiles

from .fleet import SOLO, FakeWorker, Kernel, first_state, hub_in
from .test_resuming import merged_until, resumed, told


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that was cut short in its second pass, its hub's own state folder gone."""
    home, to = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("to")

    async def run() -> str:
        async with hub_in(home) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 10), first_state())
            await kernel.loop(10)
            await kernel.enter(hub.spec(SOLO, 200), await kernel.close())
            await merged_until(kernel, 200, 5)
            with pytest.raises(RunFolderError, match="hasn't ended"):
                export_run(home, kernel.run_id, to)
            await kernel.finish("interrupted")
            return kernel.run_id

    run_id = asyncio.run(asyncio.wait_for(run(), 60))
    folder = export_run(home, run_id, to)
    with pytest.raises(RunFolderError, match="there already"):
        export_run(home, run_id, to)
    with pytest.raises(NoSuchRun):
        export_run(home, "run-none", to)
    keys = [p.read_bytes() for p in (home / "wallets").rglob("*") if p.is_file()]
    assert keys
    data = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    for key in keys:  # whole files, and the secret halves as they stand in them
        assert key not in data
        assert bytes(json.loads(key))[:32] not in data if key.startswith(b"[") else True
    shutil.rmtree(home)
    return folder, run_id


@pytest.fixture
def folder(exported: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[0], tmp_path / "folder"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


def snapshot(home: Path) -> dict[str, Any]:
    files = {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file() and not p.name.startswith("journal")}
    journal = Journal(home / "journal.sqlite")
    rows = [r.run_id for r in journal.runs()]
    journal.close()
    return {"files": files, "runs": rows}


def test_it_goes_on_at_another_hub(folder: Path, home: Path, exported: tuple[Path, str]):
    run_id = exported[1]
    assert import_run(home, folder) == run_id
    shutil.rmtree(folder)

    async def run() -> str:
        async with hub_in(home) as hub:
            assert await hub.coordinator.recover() == []
            assert hub.journal.run(run_id).resumable
            assert check(hub.journal.rows(run_id)).problems == ()
            FakeWorker(hub, "b").start()
            second, answer = await resumed(hub, run_id)
            one, two = answer["past"]
            assert (one["merged"], one["complete"]) == (10, True)
            assert sum(len(lease["logs"]) for lease in await told(second, 1)) == 10
            done = two["merged"]
            assert done >= 5
            newest = (await second.ops.kept(second.run_id, 2))["state"]
            assert int(State.from_bytes(newest).tensors["bn/n"]) == 10 + done
            spec = hub.spec(SOLO, 200, first=done)
            second.entry = (await second.ops.entry_open(second.run_id, spec.to_dict(), newest, {"number": 2}))["entry"]
            await second.loop(200, first=done)
            state = await second.close()
            assert int(state.tensors["bn/n"]) == 210
            await second.finish()
            report = check(hub.journal.rows(second.run_id))
            assert report.problems == ()
            assert [(p.merged, p.runs) for p in report.passes] == [(10, (run_id,)), (200, (run_id, second.run_id))]
            return second.run_id

    new = asyncio.run(asyncio.wait_for(run(), 60))
    found = CheckpointFiles(home / "runs").all(run_id)
    assert found
    assert all(c.whole() for c in found)
    # and on to a third one, whole
    third = home.parent / "third"
    third.mkdir()
    assert import_run(third, export_run(home, new, home.parent / "out")) == new
    journal = Journal(third / "journal.sqlite", writing=False)
    assert check(journal.rows(new)).ok
    assert torch.equal(State.from_bytes(journal.newest_state(new).read_bytes()).tensors["bn/n"], torch.tensor(210))
    journal.close()
    with pytest.raises(RunFolderError, match="here already"):
        import_run(third, home.parent / "out" / new)


def rewritten(folder: Path, change: Any) -> None:
    """The rows changed, with a manifest that fits them."""
    value = decode((folder / "rows").read_bytes())
    change(value)
    (folder / "rows").write_bytes(encode(value))
    manifest = json.loads((folder / "run.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if f[0] != "rows"]
    fact = run_folder.fact_of(folder, "rows")
    manifest["files"].append([fact.name, fact.nbytes, fact.digest])
    (folder / "run.json").write_text(json.dumps(manifest))


def refused(home: Path, folder: Path, match: str | None = None) -> None:
    before = snapshot(home)
    with pytest.raises((RunFolderError, JournalError), match=match) as caught:
        import_run(home, folder)
    assert caught.value.hint
    assert snapshot(home) == before


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "states/../../x", "states/run-other/v000001.state", "wallets/user.json", "journal.sqlite", "hub.json",
     "blobs/abc",
     "states/RUN/v000001.state/../../../x", "runs/RUN/checkpoints/000001/../../x.safetensors", "detached/RUN/results", "states\\x", ""],
)  # fmt: skip
def test_names_that_no_hub_gives_are_refused(folder: Path, home: Path, exported: tuple[Path, str], name: str):
    manifest = json.loads((folder / "run.json").read_text())
    manifest["files"].append([name.replace("RUN", exported[1]), 1, "0" * 64])
    (folder / "run.json").write_text(json.dumps(manifest))
    refused(home, folder, "isn't a run's folder")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "nothing", '{"format": 2}', "[" * 100_000, '{"format": 1, "parts": ["../x"], "files": []}']
)
def test_a_manifest_that_isnt_one(folder: Path, home: Path, text: str):
    (folder / "run.json").write_text(text)
    refused(home, folder)


def test_links_pipes_and_other_bytes(folder: Path, home: Path, tmp_path: Path, exported: tuple[Path, str]):
    manifest = json.loads((folder / "run.json").read_text())
    state = folder / next(name for name, *_ in manifest["files"] if name.endswith(".state"))
    data = state.read_bytes()
    secret = tmp_path / "secret"
    secret.write_bytes(data)
    makers = (
        lambda: state.symlink_to(secret),
        lambda: os.mkfifo(state),
        lambda: state.mkdir(),
        lambda: state.write_bytes(data[:-1] + b"\x00"),
        lambda: state.write_bytes(data + b"\x00"),
        lambda: state.write_bytes(data[:-1]),
    )
    for make in makers:
        if state.is_dir():
            state.rmdir()
        else:
            state.unlink()
        make()
        refused(home, folder)
    state.unlink()
    refused(home, folder)
    state.parent.rename(tmp_path / "elsewhere")
    state.parent.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / state.name).write_bytes(data)
    refused(home, folder, "link")


def first(table: str, column: str, value: Any) -> Any:
    def change(rows: dict[str, Any]) -> None:
        (tables,) = rows.values()
        tables[table][0][column] = value

    return change


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("runs", "run_id", "run-x"), ("runs", "state", "running"), ("runs", "settled", 0), ("runs", "version", 3), ("runs", "version", "3"),
        ("runs", "budget", "{}"), ("runs", "summary", "{}"), ("runs", "ended_at", None), ("entries", "spec", "{}"),
        ("entries", "spec", "[" * 9999),
        ("entries", "entry", 2**63), ("merges", "losses", "[1]"), ("merges", "samples", 1), ("leases", "units", "[[0, 99999999999, 1]]"),
        ("leases", "done", True), ("ledger_receipts", "body", b"x"), ("ledger_runs", "state", "open"), ("replays", "spans", "[[0]]"),
        ("resumes", "continues", "run-none"), ("resumes", "asked", "[]"), ("sites", "generators", "x"), ("events", "data", "nothing"),
        ("ledger_vouchers", "units", 1), ("ledger_payouts", "wallet", "me"),
    ],
)  # fmt: skip
def test_rows_that_no_hub_wrote_are_refused(folder: Path, home: Path, table: str, column: str, value: Any):
    rewritten(folder, first(table, column, value))
    refused(home, folder)


def test_paths_in_rows_are_not_followed(folder: Path, home: Path, exported: tuple[Path, str]):
    for table, column in (("runs", "state_file"), ("merges", "state_file"), ("replays", "file")):
        rewritten(folder, first(table, column, "/etc/passwd"))
    import_run(home, folder)
    journal = Journal(home / "journal.sqlite")
    assert journal.newest_state(exported[1]).is_relative_to(home)
    for sql in ("SELECT state_file FROM merges", "SELECT file FROM replays"):
        assert "/etc/passwd" not in {row[0] for row in journal.connection.execute(sql)}
    journal.close()


def test_another_run_of_that_name_stays(folder: Path, home: Path, exported: tuple[Path, str]):
    journal = Journal(home / "journal.sqlite")
    with journal.transaction():
        journal.add_run(exported[1], name="mine", where="", source="", strategy="", backend="", budget=None, at=0.0)
    journal.close()
    refused(home, folder, "another")


def test_tables_of_other_shapes_are_refused(folder: Path, home: Path):
    whole = (folder / "rows").read_bytes()
    for change in (
        lambda rows: rows.clear(),
        lambda rows: next(iter(rows.values())).pop("merges"),
        lambda rows: next(iter(rows.values())).update(wallets=[]),
        lambda rows: next(iter(rows.values()))["runs"].append(copy.deepcopy(next(iter(rows.values()))["runs"][0])),
        lambda rows: next(iter(rows.values()))["runs"][0].update(more=1),
        lambda rows: next(iter(rows.values())).update(ledger_runs=[]),
        lambda rows: next(iter(rows.values())).update(runs=None),
    ):
        (folder / "rows").write_bytes(whole)
        rewritten(folder, change)
        refused(home, folder)


def test_the_command_line_moves_one(folder: Path, home: Path, exported: tuple[Path, str], monkeypatch: Any, capsys: Any):
    monkeypatch.setenv("DEPIN_HOME", str(home))
    assert main(["runs", "import", str(folder)]) == 0
    assert f"--resume {exported[1]}" in capsys.readouterr().out
    assert main(["runs", "import", str(folder)]) == 1
    assert "here already" in capsys.readouterr().err
    assert main(["runs", "check", exported[1]]) == 0
    assert main(["runs", "checkpoints", exported[1]]) == 0
    assert "000" in capsys.readouterr().out
    assert main(["runs", "export", exported[1], str(home.parent / "again")]) == 0
    again = home.parent / "again" / exported[1]
    assert (again / "rows").exists()
    assert main(["runs", "import", str(home.parent)]) == 1
