"""The operations of docs/protocol.md that workers call. All that comes in is hostile until it is checked here."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from depin_nb.core.errors import HubError, UsageError
from depin_nb.core.parts import Buffer
from depin_nb.hub.leases.entry import OUT, Entry
from depin_nb.hub.leases.members import Member, member_of
from depin_nb.hub.reports import LATE, Reports
from depin_nb.hub.run import Run
from depin_nb.hub.versions.references import Reference
from depin_nb.ledger.wallet import is_address
from depin_nb.training.downlink import STEP_BITS
from depin_nb.training.entering import holding_inner, inner_to_bytes
from depin_nb.training.lifecycle import LeaseState, Trigger

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

log = logging.getLogger(__name__)
MAX_LINK_BYTES = 256 << 10
MAX_BROUGHT = 64  # leases that a worker may bring back
MAX_WAIT_S = 60.0


class WorkerOps:
    """One method for each operation, by the protocol's names and arguments. Errors are raised; the plugin makes them data."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub, self._reports = hub, Reports(hub)
        self._life = secrets.token_hex(8)

    def _member(self, worker: str) -> Member:
        member = self._hub.members.get(worker)
        if member is None:
            raise HubError("this worker hasn't joined", hint="It must call depin_join first.", hub=self._life)
        member.seen_s = self._hub.clock.monotonic()
        return member

    def _run(self, run: str) -> Run:
        found = self._hub.runs.get(run)
        if found is None:
            raise HubError(f"{run!r} is not an active run")
        return found

    def _entry(self, run: Run, entry: int) -> Entry:
        if run.entry is None or run.entry.entry_id != entry:
            raise HubError(f"entry {entry} of {run.run_id} is closed")
        return run.entry

    def join(self, worker: str, profile: str, wallet: str, facts: dict[str, Any] | None = None, held: Sequence[str] = ()) -> dict[str, Any]:
        """A worker is here. Joining again replaces what it said before. Raises ConfigError for a profile without price.

        `held`: leases that it has from a hub that is gone. `keep` in the answer are those that it may go on with and hand in; those of
        them in `later` once their notebook is back.
        """
        hub = self._hub
        hub.prices.price(profile)
        if not isinstance(worker, str) or not isinstance(wallet, str) or not is_address(wallet):
            raise UsageError("a worker joins with its address and its wallet's public key")
        if (before := hub.members.pop(worker, None)) is not None:
            hub.taking.member_gone(before)
            hub.aggregation.lost(worker)
        hub.members[worker] = member_of(
            worker, profile, wallet, facts if isinstance(facts, dict) else {}, secrets.token_hex(8), hub.clock.monotonic()
        )
        for run in hub.runs.values():
            run.without_workers_s = None
        member = hub.members[worker]
        keep = hub.returning.joined(member, [i for i in held[:MAX_BROUGHT] if isinstance(i, str)])
        hub.changed.notify()
        return {"session": member.session, "hub": self._life, "keep": keep, "later": [i for i in keep if i not in member.held]}

    def link(self, worker: str, data: bytes = b"", want: int = 0) -> dict[str, Any]:
        """Takes `data` and gives back `want` bytes: what a worker measures its link by, before it joins. Nothing is kept or counted."""
        if type(want) is not int or not 0 <= want <= MAX_LINK_BYTES or len(data) > MAX_LINK_BYTES:
            raise UsageError(f"a link is measured with at most {MAX_LINK_BYTES >> 10} KiB")
        return {"data": os.urandom(want)}  # what is on the way can't be compressed

    async def lease(self, worker: str, timeout_s: float = 30.0, held: Sequence[str] = (), link: Any = None) -> dict[str, Any]:
        """`{"lease"}` as soon as there is one, `{"wait": True}` after `timeout_s`, `{"leave": True}` for a worker that isn't wanted.

        `held`: leases that the worker has in hand; any other that it was given is lost. `link`: its link, where it measured it anew.
        """
        hub = self._hub
        member = hub.members.get(worker)
        if member is None:
            return {"leave": True, "hub": self._life}
        member.seen_s = hub.clock.monotonic()
        member.linked(link)
        self._drop_others(member, held)
        if member.parked is not None and not member.parked.done():
            member.parked.set_result({"wait": True})  # an older call of the same worker: only one can get the lease
        parked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        member.parked = parked
        hub.giving.dispatch()
        try:
            await asyncio.wait({parked}, timeout=min(max(0.0, float(timeout_s)), MAX_WAIT_S))
        except asyncio.CancelledError:
            if parked.done() and (given := parked.result().get("lease")) is not None:
                self._drop_others(member, [i for i in member.held if i != given["lease_id"]])
            raise
        finally:
            member.seen_s = hub.clock.monotonic()
            if member.parked is parked:
                member.parked = None
        return parked.result() if parked.done() else {"wait": True}

    def _drop_others(self, member: Member, held: Sequence[str]) -> None:
        """A worker doesn't work on what it doesn't name: the answer that gave it was lost, or it gave up."""
        for lease_id, run_id in list(member.held.items()):
            if lease_id in held or lease_id not in member.held:
                continue
            run = self._hub.runs.get(run_id)
            entry = run.entry if run is not None else None
            record = entry.record(lease_id) if entry is not None else None
            if run is None or entry is None or record is None:
                del member.held[lease_id]
            elif record.state is LeaseState.LEASED:
                self._hub.taking.withdraw(run, entry, record, Trigger.LOSE, "its worker doesn't have it any more")
                self._hub.commits.close_rounds(run, entry)

    async def entry(self, worker: str, run: str, entry: int, own: bool = False) -> dict[str, Any]:
        """The spec, and `own_inner` where workers go on with their optimizer state of the entry before.

        One that has none of its `own` gets `inner`, what the newest version has, where that isn't in what `depin_version` gives.
        """
        self._member(worker)
        active = self._run(run)
        spec = self._entry(active, entry).spec
        answer: dict[str, Any] = {"spec": spec.to_dict()}
        strategy = spec.strategy
        if not active.own_inner or strategy.solo or strategy.name == "sync" or active.weights is None:
            return answer
        if own:
            return {**answer, "own_inner": True}
        if strategy.down_bits in STEP_BITS and active.reference is not None:
            answer["inner"] = await self._hub.in_executor(inner_to_bytes, active.weights)
            active.bytes_down += len(answer["inner"])
        return answer

    async def blob(self, worker: str, run: str, digest: str) -> dict[str, Any]:
        self._member(worker)
        active = self._run(run)
        spec = active.entry.spec if active.entry is not None else None
        if spec is None or (digest != spec.program and digest not in spec.blobs):
            raise HubError("that blob isn't part of this run")
        return {"data": self._counted(active, await self._hub.transfers.of_blob(active, digest))}

    async def version(self, worker: str, run: str, version: int, have: dict[str, Any] | None = None) -> dict[str, Any]:
        """`{"version", "state"}`, the version whole, with `digest` where later ones may come as steps; or `{"version", "steps", "digest"}`
        from what the worker says to `have`: `{"version", "digest"}`. What is larger than a message is announced (`part`)."""
        self._member(worker)
        active = self._run(run)
        if type(version) is not int or version < 0:
            raise HubError("that isn't a version")
        reference = await self._reference(active, version)
        if reference is not None and (way := reference.way(have, version)) is not None:
            steps = [self._counted(active, await self._hub.transfers.of_bytes(active, data)) for data in way[0]]
            return {"version": version, "steps": steps, "digest": way[1]}
        if reference is not None and reference.state is not None and reference.version == version:
            digest = reference.digest
            data = self._counted(active, await self._hub.transfers.of_reference(active, reference))
            return {"version": version, "state": data, "digest": digest}
        return {"version": version, "state": self._counted(active, await self._hub.transfers.of_version(active, version))}

    @staticmethod
    def _counted(run: Run, data: bytes | dict[str, Any]) -> bytes | dict[str, Any]:
        run.bytes_down += len(data) if isinstance(data, bytes) else 0  # an announced one counts by its parts
        return data

    async def part(self, worker: str, run: str, digest: str, offset: int, want: int) -> dict[str, Any]:
        """`{"data"}`: a part of what was announced, from `offset` on."""
        return await self._hub.transfers.part(self._member(worker), self._run(run), digest, offset, want)

    async def put(self, worker: str, lease: str, about: dict[str, Any], offset: int, data: Buffer) -> dict[str, Any]:
        """Takes a part of a change that is too large for its report. `{"have"}`: bytes that are here; or `{"refused": reason}`."""
        return await self._hub.transfers.put(self._member(worker), lease, about, offset, data)

    async def _reference(self, run: Run, version: int) -> Reference | None:
        """What the run's workers hold, brought to `version` where that is the newest; None where versions travel whole."""
        bits = run.entry.spec.strategy.down_bits if run.entry is not None else 32
        if bits not in STEP_BITS:
            return None
        if run.reference is None or run.reference.bits != bits:
            run.reference = Reference(bits, self._hub.spool)
        reference = run.reference
        if version == run.version and run.weights is not None:
            newest = holding_inner(run.weights, reference.state) if run.own_inner else run.weights
            await reference.advance(version, newest, self._hub.in_executor)
        return reference

    async def reduce(self, worker: str, run: str, gang: str, step: int, rank: int, weight: float, data: Buffer) -> dict[str, Any]:
        """`{"data": codec gradients}`, the same bytes for all ranks, or `{"abort": reason}`."""
        member = self._member(worker)
        active = self._run(run)
        entry = active.entry
        rnd = entry.round if entry is not None else None
        record = next((r for r in rnd.records if r.member is member), None) if rnd is not None else None
        if entry is None or rnd is None or rnd.gang is None or record is None or record.state not in OUT:
            return {"abort": LATE}
        lease = record.lease
        if lease.gang != gang or lease.rank != rank or type(step) is not int or not isinstance(data, Buffer):
            return {"abort": "not this worker's place in the gang"}
        active.bytes_up += len(data)
        mean = await rnd.gang.reduce(rank, step, weight, data)
        member.seen_s = self._hub.clock.monotonic()
        if mean is None:
            if record.state in OUT:
                self._hub.taking.withdraw(active, entry, record, Trigger.LOSE, rnd.gang.aborted)
                active.say("gang", self._hub.clock.now(), f"A gang was given up and forms anew: {rnd.gang.aborted}")
                self._hub.commits.close_rounds(active, entry)
                self._hub.giving.dispatch()
            return {"abort": rnd.gang.aborted}
        active.bytes_down += len(mean)
        return {"data": mean}

    def alive(self, worker: str, lease: str, held: Sequence[str] = ()) -> dict[str, Any]:
        """`go`: whether the lease at work is wanted; of `held`, `drop` aren't, `later` aren't to be handed in yet, and `again` are to be
        handed in again, since an aggregator has lost their changes."""
        member = self._hub.members.get(worker)
        if member is None:
            return {"go": False, "drop": list(held), "hub": self._life}
        member.seen_s, member.chatty = self._hub.clock.monotonic(), True
        others = [i for i in held if i not in member.held]
        later = [i for i in others if self._hub.returning.expected(member, i)]
        drop = [i for i in others if i not in later and not self._hub.aggregation.keeps(i)]
        again = self._hub.aggregation.wanted_again(member, held)
        return {"go": lease in member.held or lease in later, "drop": drop, "later": later, **({"again": again} if again else {})}

    def placed(self, worker: str, lease: str) -> dict[str, Any]:
        """For an aggregator: of which run and version a lease is, or `{"refused"}`."""
        self._member(worker)
        return self._hub.aggregation.placed(worker, lease)

    def say(self, worker: str, run: str, lease: str, data: bytes) -> dict[str, Any]:
        """What a whole cell said: kept in order for the kernel, as far as there is room. Only from the worker that holds the lease."""
        member = self._member(worker)
        active = self._run(run)
        entry = active.entry
        if entry is None or not entry.spec.limit_s or member.held.get(lease) != run or not isinstance(data, bytes):
            raise HubError("nobody listens to this lease")
        active.bytes_up += len(data)
        taken = entry.output.add(data)
        entry.changed.notify()
        return {"taken": taken}

    async def report(self, worker: str, report: dict[str, Any]) -> dict[str, Any]:
        """Takes a lease's report if its worker still holds the lease; what it says is checked before it counts."""
        return await self._reports.take(self._member(worker), report)
