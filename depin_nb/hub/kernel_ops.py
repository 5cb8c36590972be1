"""The operations of docs/protocol.md that kernels call. Answers are msgpack-plain dicts; errors are raised, the plugin makes them data."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from depin_nb.core.errors import HubError, HubRestarted, NoSuchRun, UsageError
from depin_nb.core.lease import EntrySpec, Unit
from depin_nb.core.packages import checked, other_versions
from depin_nb.core.state import State
from depin_nb.hub.leases.entry import Entry
from depin_nb.hub.leases.members import links_of
from depin_nb.hub.records import resumable
from depin_nb.hub.records.resuming import MAX_TEXT
from depin_nb.hub.run import Run
from depin_nb.hub.starting import Start, amount_of, begin, begun
from depin_nb.hub.starting import resume as start_again
from depin_nb.training.downlink import same_weights
from depin_nb.training.entering import composed, same_inner

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

REASONS = ("done", "exit", "interrupt", "error")
MAX_POLL_S = 60.0


class KernelOps:
    """One method for each operation, by the protocol's names and arguments."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    def _run(self, run: str) -> Run:
        found = self._hub.runs.get(run)
        if found is None:
            ended = self._hub.ended.get(run)
            if ended is None:
                raise NoSuchRun(f"{run!r} is not an active run", run_id=run)
            raise HubError(f"{run} has ended: {ended.state}{f' ({ended.message})' if ended.message else ''}", hint="Run the cell again.")
        if found.waiting_s is not None:
            raise HubRestarted(f"the hub was killed and is back; {run} waits for its notebook", run_id=run)
        found.seen_s = self._hub.clock.monotonic()
        self._hub.resuming.kernel_back(found)
        return found

    def _entry(self, run: str, entry: int) -> tuple[Run, Entry]:
        found = self._run(run)
        if found.entry is None or found.entry.entry_id != entry:
            raise HubError(f"entry {entry} of {run} is closed")
        return found, found.entry

    # --- a run --------------------------------------------------------------------------------------

    async def run_start(
        self,
        name: str,
        where: str = "",
        strategy: str = "",
        budget: Any = None,
        backend: str = "",
        source: str = "",
        passes: int | None = None,
        workers: int | None = None,
        notices: Iterable[str] = (),
        asked: dict[str, Any] | None = None,
        resume: str | None = None,
        keep: bool = True,
        ticket: str = "",
        share: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Opens a run, its journal and its vault. Asked again with the same `ticket` (after a hub was killed), it is the same run.

        `asked`: the user's options, for a later resume (`keep=False`: this run can't be resumed). `resume`: the run that this one continues
        ("": the newest of the same cell); what isn't given is taken from it, and the answer has its loop entries and its options.
        `share`: user, weight and priority (`leases.shares.claim_of`).
        """
        said = Start(
            name=str(name or ""),
            where=str(where or ""),
            strategy=str(strategy or ""),
            backend=str(backend or ""),
            source=str(source or ""),
            cap=amount_of(budget),
            passes=passes,
            workers=workers,
            notices=tuple(map(str, notices)),
            asked=dict(asked or {}),
            keep=bool(keep),
            ticket=str(ticket)[:64],
            share=dict(share or {}),
        )
        if ticket and (known := next((r for r in self._hub.runs.values() if r.ticket == ticket), None)) is not None:
            return await begun(self._hub, known)
        return await begin(self._hub, said) if resume is None else await start_again(self._hub, said, str(resume))

    async def run_finish(self, run: str, outcome: str, message: str = "") -> dict[str, Any]:
        """Ends a run and settles it. Finishing it again answers the same."""
        ended = self._hub.ended.get(run)
        if ended is None:
            active = self._hub.runs.get(run)
            if active is None and (summary := self._hub.journal.run(run).summary) is not None:
                return {"status": summary}  # by a hub that was killed since
            active = active or self._run(run)
            if outcome == "interrupted" and active.state == "stopping":
                outcome = "stopped"  # a detached run that was stopped outside its loop
            await self._hub.finish(active, outcome, message or active.note)
            ended = active
        return {"status": self._hub.status(ended).to_dict()}

    def needs(self, packages: dict[str, Any], memory_bytes: int = 0) -> dict[str, Any]:
        """By worker id: which of {distribution: version} it lacks or has in another version, whether it can't compile or is too small,
        and its link as last measured."""
        wanted = checked(packages) or {}
        members = list(self._hub.members.values())
        return {
            "lacks": {m.worker_id: found for m in members if (found := m.lacks(wanted))},
            "other": {m.worker_id: found for m in members if (found := other_versions(wanted, m.packages or {}))},
            "small": {m.worker_id: m.memory_bytes for m in members if not m.fits(int(memory_bytes))},
            "uncompiled": [m.worker_id for m in members if not m.compiles],
            "links": links_of(members),
        }

    async def blob_missing(self, run: str, digests: Iterable[str]) -> dict[str, Any]:
        self._run(run)
        return {"missing": await self._hub.in_executor(self._hub.blobs.missing, list(digests))}

    async def blob_put(self, run: str, data: bytes) -> dict[str, Any]:
        self._run(run)
        return {"digest": await self._hub.in_executor(self._hub.blobs.put, bytes(data))}

    # --- an entry -----------------------------------------------------------------------------------

    async def entry_open(
        self,
        run: str,
        spec: dict[str, Any],
        state: bytes | None = None,
        about: dict[str, Any] | None = None,
        same: dict[str, bytes] | None = None,
        entry: int | None = None,
    ) -> dict[str, Any]:
        """Opens the next loop entry on `state`, or on the run's newest version. One that is still open is closed.

        `same`: slots that aren't in `state` because the newest version has them, by digest (training/entering.py). Where it hasn't,
        nothing is opened and the answer is `{"whole": True}`: the kernel sends its state whole.
        `entry`: which one it will be; one that is open already is answered as it is (the first answer was lost with its hub).
        `about`, journalled for a resume: number (of the loop entry in its cell: one that goes on keeps it), header, where, generators;
        for the displays: loop and strategy, as sentences.
        """
        hub, active = self._hub, self._run(run)
        opened = EntrySpec.from_dict(spec)
        if (is_open := active.entry) is not None and is_open.entry_id == entry:
            return {"entry": is_open.entry_id, "version": is_open.base_version}
        site = hub.resuming.number_of(active, opened, about)
        if lacking := await hub.in_executor(hub.blobs.missing, [opened.program, *opened.blobs]):
            raise HubError(f"{len(lacking)} blobs of this entry weren't sent", hint="Run the cell again.")
        await hub.close_entry(active, "done")
        if state is not None:
            data = await hub.in_executor(self._composed, active.weights, state, dict(same or {}))
            if data is None:
                return {"whole": True}
            version = active.version + 1
            await hub.in_executor(hub.states.write, run, version, data)
            weights: State = await hub.in_executor(hub.states.open, run, version)
            if active.weights is None or not await hub.in_executor(same_weights, active.weights, weights):
                active.reference = None  # what the notebook changed travels exactly
        elif active.weights is not None:
            weights, version = active.weights, active.version
        else:
            raise UsageError("a run's first entry comes with its state")
        number = active.entries + 1
        name = hub.states.name(run, version)

        def write() -> None:
            hub.journal.add_entry(run, number, opened.to_dict(), version, name, hub.clock.now())
            resumable.add_site(hub.journal.connection, run, number, **site)

        await hub.flush(active, write)
        active.own_inner = active.weights is not None and await hub.in_executor(same_inner, active.weights, weights)
        active.weights, active.version, active.entries = weights, version, number
        told = about or {}
        if active.strategies.get(site["place"], opened.strategy.name) != opened.strategy.name:
            active.say("strategy", hub.clock.now(), f"From here on {told.get('strategy') or opened.strategy.name}"[:MAX_TEXT])
        active.strategies[site["place"]] = opened.strategy.name
        active.where = str(told.get("loop") or active.where)[:MAX_TEXT]
        active.strategy = str(told.get("strategy") or active.strategy or opened.strategy.name)[:MAX_TEXT]
        active.number, active.done_before = site["number"], hub.resuming.done_before(active, site["number"], opened)
        begun_entry = Entry(run, number, opened, version)
        begun_entry.life = active.life
        await hub.resuming.restore(active, begun_entry, active.number)
        begun_entry.program_bytes = sum(hub.blobs.size(d) for d in (opened.program, *opened.blobs))
        if active.state == "stopping":
            begun_entry.halt = "stopped"  # the stop came between two entries
        active.entry = begun_entry
        active.state = "running" if active.state == "planning" else active.state
        active.without_workers_s = None
        hub.changed.notify()
        return {"entry": number, "version": version}

    @staticmethod
    def _composed(newest: State | None, data: bytes, same: dict[str, bytes]) -> bytes | Iterable[bytes | memoryview] | None:
        """The bytes of the entry's first state; None where the newest version lacks some of `same`."""
        if not same:
            return data
        state = composed(newest, State.from_bytes(data), same)
        return None if state is None else state.to_parts()

    def units(self, run: str, entry: int, units: Iterable[tuple[int, bytes, int]], closed: bool = False) -> dict[str, Any]:
        active, found = self._entry(run, entry)
        found.feed([Unit(int(i), bytes(data), int(samples)) for i, data, samples in units], bool(closed))
        self._hub.returning.sort_out(active)
        self._hub.giving.dispatch()
        found.told_want = self._hub.giving.want(active, found)
        return {"want": found.told_want}

    async def results(self, run: str, entry: int, after: int = 0, timeout_s: float = 10.0) -> dict[str, Any]:
        """Results from iteration `after` on, gapless and in loop order; waits until there is something to tell.

        Something = a result, a state other than running and paused, or more units wanted than the kernel was told of.
        """
        hub = self._hub
        active, found = self._entry(run, entry)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(max(0.0, float(timeout_s)), MAX_POLL_S)
        active.polls += 1
        found.polls += 1
        try:
            hub.giving.dispatch()
            while True:
                leases, more = found.results(int(after))
                state = "running" if more else self._state(active, found)
                want = hub.giving.want(active, found)
                if leases or state not in ("running", "paused") or want > found.told_want:
                    break
                if not await found.changed.wait(max(0.0, until - loop.time())):
                    break
        finally:
            active.polls -= 1
            found.polls -= 1
            active.seen_s = hub.clock.monotonic()
        found.told_want = want
        failed = state in ("failed", "budget") and not leases
        return {
            "leases": [r.to_dict() for r in leases],
            "want": want,
            "state": "running" if state == "failed" and leases else state,
            "error": found.error if failed else None,
            "status": hub.status(active).to_dict(),
        }

    @staticmethod
    def _state(run: Run, entry: Entry) -> str:
        if not entry.halt:
            return "paused" if run.state == "paused" else "running"
        if entry.busy:
            return "running"  # what is under way still merges
        return "stopped" if entry.halt == "closed" else entry.halt

    async def output(self, run: str, entry: int, after: int = 0, timeout_s: float = 0.0) -> dict[str, Any]:
        """Chunks of a whole cell's output from number `after` on; waits for some, or for anything else that happens to the entry."""
        active, found = self._entry(run, entry)
        if not found.output.after(int(after)) and timeout_s > 0:
            active.polls += 1
            try:
                await found.changed.wait(min(float(timeout_s), MAX_POLL_S))
            finally:
                active.polls -= 1
        return {"chunks": found.output.after(int(after)), "left_out": found.output.left_out}

    async def state(self, run: str, version: int | None = None) -> dict[str, Any]:
        active = self._run(run)
        wanted = active.version if version is None else int(version)
        if wanted < 0:
            raise HubError(f"{run} has no weights yet")
        return {"version": wanted, "state": await self._hub.in_executor(self._hub.states.read, run, wanted)}

    async def replay(self, run: str, number: int, after: int = 0) -> dict[str, Any]:
        """What the run that this one continues merged of loop entry `number`, from iteration `after` on: some leases, in loop order.

        Beside what `depin_results` tells of a lease, `drawn`: a digest of each iteration's item.
        """
        return {"leases": await self._hub.resuming.logs(self._run(run), number, int(after))}

    async def kept(self, run: str, number: int) -> dict[str, Any]:
        """The state at the end of that loop entry; of the one that was under way, the newest."""
        return {"state": await self._hub.resuming.end_state(self._run(run), number)}

    async def entry_close(self, run: str, entry: int, reason: str) -> dict[str, Any]:
        """Ends an entry: `done` and `exit` after its last result, `interrupt` and `error` at any time. Answers the newest version."""
        if reason not in REASONS:
            raise UsageError(f"an entry is closed as {', '.join(REASONS)}, not {reason!r}")
        active = self._run(run)
        if active.entry is not None or active.entries != entry:  # else: closed by a hub that was killed since
            active, _ = self._entry(run, entry)
            await self._hub.close_entry(active, reason)
        return {"version": active.version}

    async def run_reopen(self, run: str, after: int = 0) -> dict[str, Any]:
        """After a hub was killed: the run goes on in this one. The kernel sends again every unit of which it has no result.

        `after`: the iteration up to which it has results. Answers the entry that is open (0: none).
        """
        return await self._hub.reopening.reopen(run, int(after))

    def alive(self, run: str) -> None:
        """The run's kernel is known to live: its connection is open."""
        if (active := self._hub.runs.get(run)) is not None and active.waiting_s is None:
            active.seen_s = self._hub.clock.monotonic()
            self._hub.resuming.kernel_back(active)

    def lost(self, run: str) -> None:
        """The run's kernel has closed its connections, or was killed."""
        if (active := self._hub.runs.get(run)) is not None:
            self._hub.resuming.kernel_lost(active)
