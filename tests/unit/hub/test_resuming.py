"""A run that was cut short goes on as a new one: what was merged is told again, never leased, paid or counted again."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from depin_nb.core.amount import USD, Amount
from depin_nb.core.errors import BudgetExhausted, HubError, NoSuchRun, ResumeError
from depin_nb.core.lease import drawn_digest
from depin_nb.core.state import State
from depin_nb.hub.records import replays, resumable
from depin_nb.hub.records import resuming as policy
from depin_nb.hub.records.journal import Journal
from depin_nb.hub.versions import states
from depin_nb.ledger.verify import verify_run

from .fleet import LOCAL, SOLO, FakeWorker, Hub, Kernel, first_state, hub_in, nobody_came

CELL = "for x in y: ..."


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def resumed(hub: Hub, run_id: str, source: str = CELL, **given: Any) -> tuple[Kernel, dict[str, Any]]:
    """A new kernel that continues a run whose own is gone."""
    hub.coordinator.connected = lambda run_id: False
    answer = await hub.coordinator.kernel.run_start("", source=source, resume=run_id, **given)
    hub.coordinator.connected = lambda run_id: True
    return Kernel(hub, answer["run_id"]), answer


async def merged_until(kernel: Kernel, total: int, at: int) -> None:
    """Feeds everything, collects until `at` iterations are merged."""
    want = kernel.ops.units(kernel.run_id, kernel.entry, [(i, b"%d" % i, 2) for i in range(total)], True)["want"]
    assert want == 0
    got = 0
    while got < at:
        answer = await asyncio.wait_for(kernel.ops.results(kernel.run_id, kernel.entry, got, 20), 30)
        got += sum(len(lease["logs"]) for lease in answer["leases"])


async def told(kernel: Kernel, number: int) -> list[dict[str, Any]]:
    """All leases that the continued run merged of a loop entry."""
    found: list[dict[str, Any]] = []
    at = 0
    while leases := (await kernel.ops.replay(kernel.run_id, number, at))["leases"]:
        found += leases
        at += sum(len(lease["logs"]) for lease in leases)
    return found


def together(hub: Hub, *runs: str) -> list[int]:
    """Unit indices of every merged lease of these runs' last entries."""
    indices: list[int] = []
    for run_id in runs:
        (entry,) = hub.journal._rows("SELECT MAX(entry) FROM entries WHERE run_id=?", run_id)[0]
        indices += [i for i, _ in hub.journal.merged_units(run_id, entry)]
    return sorted(indices)


def test_a_solo_run_goes_on_where_it_stopped(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            first = await Kernel.open(hub)
            await first.enter(hub.spec(SOLO, 10), first_state())
            await first.loop(10)
            end = await first.close()
            await first.enter(hub.spec(SOLO, 30), end)
            await merged_until(first, 30, 5)

            second, answer = await resumed(hub, first.run_id)
            assert answer["continues"] == first.run_id
            assert hub.journal.run(first.run_id).state == "interrupted"
            assert hub.journal.run(first.run_id).settled
            one, two = answer["past"]
            assert (one["number"], one["merged"], one["complete"]) == (1, 10, True)
            assert (two["number"], two["complete"]) == (2, False)
            logs = await told(second, 1)
            assert sum(len(lease["logs"]) for lease in logs) == 10
            assert b"".join(lease["drawn"] for lease in logs) == b"".join(drawn_digest(b"%d" % i) for i in range(10))
            kept = State.from_bytes((await second.ops.kept(second.run_id, 1))["state"])
            assert all(torch.equal(kept.tensors[n], end.tensors[n]) for n in end.tensors)
            done = two["merged"]
            assert 5 <= done < 30
            newest = State.from_bytes((await second.ops.kept(second.run_id, 2))["state"])
            assert int(newest.tensors["bn/n"]) == 10 + done
            with pytest.raises(HubError, match="was done by"):
                await second.ops.entry_open(second.run_id, hub.spec(SOLO, 10).to_dict(), end.to_bytes(), {"number": 1})
            with pytest.raises(HubError, match="goes on at iteration"):
                await second.ops.entry_open(second.run_id, hub.spec(SOLO, 30).to_dict(), end.to_bytes(), {"number": 2})
            answer = await second.ops.entry_open(second.run_id, hub.spec(SOLO, 30, first=done).to_dict(), newest.to_bytes(), {"number": 2})
            second.entry = answer["entry"]
            await second.loop(30, first=done)
            state = await second.close()
            assert int(state.tensors["bn/n"]) == 40
            assert together(hub, first.run_id, second.run_id) == list(range(30))
            status = await second.finish()
            assert status["iterations_done"] == 40
            assert [x for x, _ in hub.journal.run(second.run_id).losses] == list(range(40))
            for run_id in (first.run_id, second.run_id):
                assert verify_run(run_id, hub.journal.connection, hub.chain).problems == ()
            # finished: nothing is kept for going on
            assert resumable.kept(hub.journal.connection) == []
            assert not list((tmp_path / "replays").iterdir())
            assert {p.name: len(list(p.iterdir())) for p in (tmp_path / "states").iterdir()} == {first.run_id: 1, second.run_id: 1}
            with pytest.raises(ResumeError, match="has been continued"):
                await resumed(hub, first.run_id)
            with pytest.raises(ResumeError, match="has finished"):
                await resumed(hub, second.run_id)

    run(main())


def test_iterations_behind_a_gap_are_not_leased_again(tmp_path: Path):
    """A chunk was lost while later ones merged; then the kernel died."""

    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            held = asyncio.Event()

            def act(lease: Any) -> str | None:
                held.set()
                return "die" if lease.first == 0 else None

            FakeWorker(hub, "a", act=act).start()
            FakeWorker(hub, "b").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(LOCAL, 40), first_state())
            units = [(i, b"%d" % i, 2) for i in range(10)]
            kernel.ops.units(kernel.run_id, kernel.entry, units, False)
            await asyncio.wait_for(held.wait(), 20)
            run_ = hub.coordinator.runs[kernel.run_id]
            while not run_.merges:
                await asyncio.wait_for(run_.entry.changed.wait(20), 30)  # type: ignore[union-attr]
            before = kernel.counted()
            second, answer = await resumed(hub, kernel.run_id)
            before = [i for i, _ in hub.journal.merged_units(kernel.run_id, 1)]
            (chapter,) = answer["past"]
            state = (await second.ops.kept(second.run_id, 1))["state"]
            spec = hub.spec(LOCAL, 40, first=chapter["merged"])
            second.entry = (await second.ops.entry_open(second.run_id, spec.to_dict(), state, {"number": 1}))["entry"]
            await second.loop(40, first=chapter["merged"])
            end = await second.close()
            assert second.indices() == list(range(chapter["merged"], 40)), "each is told once, in order"
            assert together(hub, kernel.run_id, second.run_id) == list(range(40)), "each is merged once"
            assert int(end.tensors["bn/n"]) == 40
            assert before
            assert before[0] > 0, "there was a gap"
            assert (await second.finish())["iterations_done"] == 40

    run(main())


def test_the_outer_velocity_goes_on(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            for name in "ab":
                FakeWorker(hub, name).start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(replace(LOCAL, outer_momentum=0.5), 60), first_state())
            await merged_until(kernel, 60, 20)
            before = hub.coordinator.runs[kernel.run_id]
            await hub.coordinator.finish(before, "interrupted", "", cut=True)
            files = {p.suffix for p in (tmp_path / "states" / kernel.run_id).iterdir()}
            assert files == {".state", ".outer"}
            second, _ = await resumed(hub, kernel.run_id)
            outer = hub.coordinator.runs[second.run_id].outer
            assert outer is not None
            assert outer.momentum["model/w"].abs().sum() > 0

    run(main())


def test_a_resumed_run_is_resumed_again(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 30), first_state())
            await merged_until(kernel, 30, 4)
            runs = [kernel.run_id]
            for _ in range(2):
                kernel, answer = await resumed(hub, runs[-1])
                runs.append(kernel.run_id)
                (chapter,) = answer["past"]
                done = chapter["merged"]
                state = (await kernel.ops.kept(kernel.run_id, 1))["state"]
                spec = hub.spec(SOLO, 30, first=done)
                kernel.entry = (await kernel.ops.entry_open(kernel.run_id, spec.to_dict(), state, {"number": 1}))["entry"]
                ready = [(i, b"%d" % i, 2) for i in range(done, min(done + 3, 30))]
                kernel.ops.units(kernel.run_id, kernel.entry, ready, False)
                await asyncio.wait_for(kernel.ops.results(kernel.run_id, kernel.entry, done, 20), 30)
            assert resumable.heads(hub.journal.connection) == []
            kernel, answer = await resumed(hub, "")
            assert answer["continues"] == runs[-1]
            assert resumable.chain(hub.journal.connection, kernel.run_id) == [*runs, kernel.run_id]
            logs = await told(kernel, 1)
            assert [lease["first"] for lease in logs] == sorted(lease["first"] for lease in logs)
            assert sum(len(lease["logs"]) for lease in logs) == answer["past"][0]["merged"] >= 6

    run(main())


def test_what_cannot_be_resumed_is_said(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            with pytest.raises(NoSuchRun):
                await resumed(hub, "run-none")
            with pytest.raises(ResumeError, match="no run of this cell"):
                await resumed(hub, "", source="another")
            hub.coordinator.connected = lambda run_id: True
            with pytest.raises(ResumeError, match="still going on"):
                await hub.coordinator.kernel.run_start("", source=CELL, resume=kernel.run_id)
            await kernel.enter(hub.spec(SOLO, 8), first_state())
            await merged_until(kernel, 8, 2)
            with pytest.raises(ResumeError, match=r"line 1 is `for x in z: ...` and was `for x in y: ...`"):
                await resumed(hub, kernel.run_id, source="for x in z: ...")
            _, answer = await resumed(hub, kernel.run_id, source=f"{CELL}  \n\n")
            with pytest.raises(ResumeError, match=f"is being continued as {answer['run_id']}"):
                await resumed(hub, kernel.run_id)
            # one that didn't come to open an entry leaves the other as it was
            await hub.coordinator.kernel.run_finish(answer["run_id"], "failed", "the cell differs")
            assert resumable.heads(hub.journal.connection) == [kernel.run_id]
            await resumed(hub, kernel.run_id)

    run(main())


def test_the_budget_goes_on_from_what_was_spent(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            cap = Amount(1_000_000, USD)
            kernel = await Kernel.open(hub, cap.to_dict())
            await kernel.enter(hub.spec(SOLO, 8), first_state())
            await merged_until(kernel, 8, 2)
            second, answer = await resumed(hub, kernel.run_id)
            spent = Amount.from_dict(hub.journal.run(kernel.run_id).summary["spent"])  # type: ignore[index]
            assert spent.units > 0
            assert Amount.from_dict(answer["status"]["budget"]) == cap - spent
            await second.finish("interrupted")
            third, answer = await resumed(hub, kernel.run_id, budget="$5")
            assert Amount.from_dict(answer["status"]["budget"]).text() == "$5.00"
            await third.finish("interrupted")
            with hub.journal.transaction() as connection:
                connection.execute("UPDATE runs SET spent_units=? WHERE run_id=?", (10**15, kernel.run_id))
            with pytest.raises(BudgetExhausted, match="has spent its budget"):
                await resumed(hub, kernel.run_id)

    run(main())


def test_a_killed_hub_leaves_a_run_that_goes_on(tmp_path: Path):
    runs: list[str] = []

    async def until_the_kill() -> None:
        hub = Hub(tmp_path)
        worker = FakeWorker(hub, "a").start()
        kernel = await Kernel.open(hub)
        runs.append(kernel.run_id)
        await kernel.enter(hub.spec(SOLO, 30), first_state())
        await merged_until(kernel, 30, 5)
        assert worker.task is not None
        worker.task.cancel()
        await hub.coordinator.commits.settled(hub.coordinator.runs[kernel.run_id])
        hub.kill()

    async def afterwards() -> None:
        async with hub_in(tmp_path) as hub:
            (tmp_path / "replays" / "run-none").mkdir()  # what a kill between file and transaction may leave
            assert await hub.coordinator.recover() == []
            assert not (tmp_path / "replays" / "run-none").exists()
            said = resumable.offer(tmp_path / "journal.sqlite", now=hub.clock.now(), hub_lives=True)
            assert said is not None
            assert f"`%%depin train --resume {runs[0]}`" in said
            assert "of loop pass 1" in said
            kernel, answer = await resumed(hub, runs[0])
            assert sum(len(lease["logs"]) for lease in await told(kernel, 1)) == answer["past"][0]["merged"] >= 5
            again = resumable.offer(tmp_path / "journal.sqlite", now=hub.clock.now(), hub_lives=True)
            assert again is None, "it goes on already"

    run(until_the_kill())
    run(afterwards())


def works_until_killed(home: Path, at: int) -> None:
    """A hub with two loop entries in a process of its own that ends itself by SIGKILL before its `at`th write of a file or transaction."""
    left = [at]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(module: Any, name: str) -> None:
        act = getattr(module, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            count()
            return act(*args, **kwargs)

        setattr(module, name, counting)

    async def main() -> None:
        hub = Hub(home)
        counted(states, "write_atomic")
        counted(replays, "write_atomic")
        counted(Journal, "transaction")
        FakeWorker(hub, "a").start()
        kernel = await Kernel.open(hub)
        state: State | None = first_state()
        for _ in range(4):
            await kernel.enter(hub.spec(SOLO, 6), state)
            await kernel.loop(6)
            state = await kernel.close()
        await kernel.finish()

    try:
        run(main())
    finally:
        os._exit(1)


@pytest.mark.parametrize("at", range(2, 26, 2))
def test_wherever_the_hub_is_killed_the_journal_is_whole(tmp_path: Path, at: int):
    child = os.fork()
    if child == 0:
        works_until_killed(tmp_path, at)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            await hub.coordinator.recover()
            await nobody_came(hub)
            journal = hub.journal
            runs = journal.runs()
            assert [r.state for r in runs] == ["interrupted"] * len(runs)
            for row in runs:
                chapters = resumable.chapters(journal.connection, row.run_id)
                merged = [i for c in chapters for i, _ in journal.merged_units(row.run_id, c.number)]
                # every merge that the journal has can be replayed, and the state is that of all of them
                assert sum(c.contiguous for c in chapters) == sum(c.merged for c in chapters) == len(merged)
                assert merged or at < 12
                if not merged:
                    with pytest.raises(ResumeError, match="merged nothing"):
                        await resumed(hub, row.run_id)
                    continue
                kernel, _ = await resumed(hub, row.run_id)
                for chapter in chapters:
                    logs = await told(kernel, chapter.number)
                    assert sum(len(lease["logs"]) for lease in logs) == chapter.merged
                    state = State.from_bytes((await kernel.ops.kept(kernel.run_id, chapter.number))["state"])
                    assert int(state.tensors["bn/n"]) == sum(c.merged for c in chapters[: chapter.number])
                await kernel.finish("interrupted")

    run(main())


def test_a_lost_kernel_is_offered_at_once_and_taken_back(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 30), first_state())
            await merged_until(kernel, 30, 5)
            path = tmp_path / "journal.sqlite"

            def offered() -> str | None:
                return resumable.offer(path, now=hub.clock.now(), hub_lives=True)

            async def written() -> None:
                while hub.coordinator._tasks:
                    await asyncio.wait(hub.coordinator._tasks)

            assert offered() is None
            kernel.ops.lost(kernel.run_id)
            await written()
            assert kernel.run_id in (offered() or "")
            assert hub.journal.run(kernel.run_id).resumable
            kernel.ops.alive(kernel.run_id)
            await written()
            assert offered() is None
            assert resumable.offer(path, now=hub.clock.now(), hub_lives=False) is not None
            assert resumable.offer(path, now=hub.clock.now() + 30 * 86400, hub_lives=False) is None
            await kernel.finish("interrupted")
            assert offered() is None, "the user ended it"
            assert hub.journal.run(kernel.run_id).resumable

    run(main())


def test_only_the_newest_unfinished_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy, "KEPT_RUNS", 2)

    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            runs = []
            for _ in range(4):
                kernel = await Kernel.open(hub)
                await kernel.enter(hub.spec(SOLO, 6), first_state())
                await kernel.loop(6)
                end = await kernel.close()
                await kernel.enter(hub.spec(SOLO, 6), end)
                hub.clock.at_s += 1
                await kernel.finish("interrupted")
                runs.append(kernel.run_id)
            assert resumable.heads(hub.journal.connection) == [runs[3], runs[2]]
            assert sorted(p.name for p in (tmp_path / "replays").iterdir()) == sorted(runs[2:])
            assert [len(list((tmp_path / "states" / r).iterdir())) for r in runs] == [1, 1, 2, 2]
            with pytest.raises(ResumeError, match="not kept any more"):
                await resumed(hub, runs[0])

    run(main())


def test_a_run_that_makes_too_much_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy, "MAX_RUN_BYTES", 600)

    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 30), first_state())
            await kernel.loop(30)
            await kernel.close()
            status = await kernel.finish("interrupted")
            assert any("can't be resumed any more" in notice for notice in status["notices"])
            assert status["iterations_done"] == 30
            assert not list((tmp_path / "replays").iterdir())
            assert not hub.journal.run(kernel.run_id).resumable

    run(main())


def test_a_damaged_log_is_an_error_that_names_it(tmp_path: Path):
    async def main() -> None:
        async with hub_in(tmp_path) as hub:
            FakeWorker(hub, "a").start()
            kernel = await Kernel.open(hub)
            await kernel.enter(hub.spec(SOLO, 6), first_state())
            await merged_until(kernel, 6, 2)
            second, _ = await resumed(hub, kernel.run_id)
            for path in (tmp_path / "replays" / kernel.run_id).iterdir():
                path.write_bytes(b"\x00" * 10)
            with pytest.raises(HubError, match="can't be read"):
                await second.ops.replay(second.run_id, 1, 0)
            with pytest.raises(HubError, match="no run with a loop entry"):
                await second.ops.replay(second.run_id, 7, 0)

    run(main())
