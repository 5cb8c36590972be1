"""The tree: in large rounds trusted workers sum up other workers' changes (training/tree.py). Who sums what, and what if one goes.

A change at an aggregator is `Parked`: its lease is accepted, its bytes aren't here. Before the round closes each aggregator hands on one
sum. Until the merge nothing is lost with an aggregator: its leases are out again, and their workers, who keep what they handed in until
they are told that it isn't needed, hand it in here. Where such a worker is gone too, the units are open again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from depin_nb.core import config
from depin_nb.core.errors import CodecError, DepinError, HubDied
from depin_nb.core.parts import WHOLE_BYTES, announced
from depin_nb.hub.leases.entry import Entry, LeaseRecord, Round
from depin_nb.hub.leases.members import Member
from depin_nb.hub.run import Run
from depin_nb.training import tree
from depin_nb.training.lifecycle import LeaseState, Trigger
from depin_nb.training.merge import Contribution

if TYPE_CHECKING:
    from depin_nb.core.state import State
    from depin_nb.hub.coordinator import Coordinator
    from depin_nb.hub.versions.mapped import Relief
    from depin_nb.hub.versions.spool import Held
    from depin_nb.training.compress import Change

log = logging.getLogger(__name__)

LOOK_S = 0.5  # how often a call looks whether who is called is still there


class Calls(Protocol):
    async def call(self, op: str, **request: Any) -> Any: ...
    async def close(self) -> None: ...


@dataclass(frozen=True)
class Parked:
    """A checked change that is at an aggregator (its address)."""

    at: str
    about: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return int(self.about["bytes"])


@dataclass(frozen=True)
class Sum:
    """What an aggregator handed on: one change for these leases, with their samples and last iteration."""

    leases: frozenset[str]
    samples: int
    last_index: int
    change: Held


class Aggregation:
    """`dial(address)`: calls to a worker; without it there is no tree. `tree_bytes`, `fan_in`: see training/tree.py."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self.dial: Callable[[str], Calls] | None = None
        self.tree_bytes, self.fan_in = config.tree_bytes(tree.TREE_BYTES), tree.FAN_IN
        self.whole_bytes = WHOLE_BYTES  # smaller changes go with their report

    # --- who ------------------------------------------------------------------------------------------------

    def aggregator_of(self, run: Run, entry: Entry, rnd: Round, member: Member) -> str:
        """The address of the worker that sums up what `member` makes in this round; "" for the hub itself.

        The hub takes what could still count for nothing (loops that can be left early) and gangs' and solo changes itself.
        """
        if self.dial is None or rnd.kind != "local" or entry.spec.contiguous or run.weights is None or entry.is_final():
            return ""
        if rnd.aggregators is None:
            able = sorted(self._hub.muster.members(run), key=lambda m: m.worker_id)  # as rounds are dealt out
            each = run.change_bytes or tree.expected_bytes(run.weights, entry.spec.strategy)
            trusted = {m.address: m.up_mbit_s for m in able if m.trusted}
            names = [m.address for m in able]
            rnd.aggregators = (
                tree.assigned(names, trusted, each, tree_bytes=self.tree_bytes, fan_in=self.fan_in, sum_bytes=run.weights.nbytes())
                if each > self.whole_bytes
                else {}
            )
        name = rnd.aggregators.get(member.address, "")
        return name if name in self._hub.members else ""

    def placed(self, worker: str, lease: str) -> dict[str, Any]:
        """For an aggregator: whose lease it is, of which run, on which version, and the most bytes of its change; or `{"refused"}`."""
        for run in self._hub.runs.values():
            entry = run.entry
            record = entry.record(lease) if entry is not None and isinstance(lease, str) else None
            if entry is None or record is None or record.lease.aggregator != worker or not record.at(LeaseState.LEASED):
                continue
            if self._late(entry, record):
                break
            return {
                "worker": record.member.address,
                "run": run.run_id,
                "version": record.lease.base_version,
                "bits": entry.spec.strategy.bits,
                "most": self._hub.change_limit(run),
            }
        return {"refused": "no such lease is out that is summed up here"}

    @staticmethod
    def _late(entry: Entry, record: LeaseRecord) -> bool:
        """Whether its round went ahead without it: the hub merges it with what was made from other versions."""
        return any(record in rnd.records and record not in rnd.fresh for rnd in entry.rounds)

    # --- reports --------------------------------------------------------------------------------------------

    async def checked(self, run: Run, record: LeaseRecord, at: Any, about: Any) -> Parked | None:
        """The change of a lease in hand, which its worker says is at `at`: checked there as here. None when it can't be had from there.
        Raises CodecError when it isn't a change of that lease's base."""
        if not at or at != record.lease.aggregator or self.dial is None:
            raise CodecError("a change is where its lease didn't say")
        announced(about, max_bytes=self._hub.change_limit(run))
        if run.entry is None or self._late(run.entry, record):
            return None
        peer = self.dial(at)
        try:
            answer = await self._asked(peer, at, "depin_check", lease=record.lease.lease_id, about=about)
        except CodecError:
            raise
        except DepinError as error:
            log.warning("%s can't check a change: %s", at, error.message)
            return None
        finally:
            await peer.close()
        return Parked(at, about) if answer == {"valid": True} and at in self._hub.members else None

    async def _asked(self, peer: Calls, at: str, op: str, **request: Any) -> Any:
        """The aggregator's answer. Raises HubDied as soon as it is gone or silent."""
        call = asyncio.ensure_future(peer.call(op, **request))
        try:
            while not (await asyncio.wait({call}, timeout=LOOK_S))[0]:
                member = self._hub.members.get(at)
                if member is None or member.silent(self._hub.clock.monotonic()):
                    raise HubDied(f"{at} is silent")
            return call.result()
        finally:
            call.cancel()

    def keeps(self, lease_id: str) -> bool:
        """Whether a worker should keep what it handed in for that lease: no merge holds it yet."""
        for run in self._hub.runs.values():
            record = run.entry.record(lease_id) if run.entry is not None else None
            if record is not None and isinstance(record.change, Parked) and record.at(LeaseState.ACCEPTED):
                return True
        return False

    def wanted_again(self, member: Member, lease_ids: Collection[str]) -> list[str]:
        """Those of the member's leases of which the change was lost with its aggregator."""
        found = []
        for lease_id in lease_ids:
            run = self._hub.runs.get(member.held.get(lease_id, "")) if isinstance(lease_id, str) else None
            record = run.entry.record(lease_id) if run is not None and run.entry is not None else None
            if record is not None and record.again and record.at(LeaseState.LEASED):
                found.append(lease_id)
        return found

    # --- when an aggregator goes ------------------------------------------------------------------------------

    def lost(self, address: str) -> None:
        """An aggregator is gone, or hands nothing on: what it had and no merge holds is asked from those who made it."""
        for run in list(self._hub.runs.values()):
            entry = run.entry
            if entry is None:
                continue
            for rnd in [r for r in entry.rounds if not r.merging and address not in r.sums]:
                gone = [r for r in rnd.accepted if isinstance(r.change, Parked) and r.change.at == address]
                for record in gone:
                    self._again(run, entry, record)
                if gone:
                    what = "1 change is" if len(gone) == 1 else f"{len(gone)} changes are"
                    run.say("aggregator-lost", self._hub.clock.now(), f"An aggregator is gone: {what} handed in again.", address=address)
                if rnd.aggregators:
                    rnd.aggregators = {name: at for name, at in rnd.aggregators.items() if at != address}
            self._hub.commits.close_rounds(run, entry)
            entry.changed.notify()
        self._hub.giving.dispatch()

    def _again(self, run: Run, entry: Entry, record: LeaseRecord) -> None:
        member = record.member
        if self._hub.members.get(member.address) is not member:
            self._hub.taking.withdraw(run, entry, record, Trigger.LOSE, "its change was lost with its aggregator")
            return
        now = self._hub.clock.monotonic()
        self.out_again(run, record)
        record.report, record.change, record.again = None, None, True
        record.given_s = record.begun_s = now
        run.tally(member, self._hub.prices).began(run.clock(now))

    @staticmethod
    def out_again(run: Run, record: LeaseRecord) -> None:
        """Its worker has the lease again: the report is as if it had never come."""
        record.go(Trigger.LOSE)
        record.go(Trigger.LEASE)
        record.member.held[record.lease.lease_id] = run.run_id

    # --- before a round closes ----------------------------------------------------------------------------------

    def awaits(self, run: Run, entry: Entry, rnd: Round) -> bool:
        """Whether sums of a round that is otherwise ready are still to come; asks for them."""
        wanted = self._wanted(entry, rnd)
        if all(at in rnd.sums and rnd.sums[at].leases == frozenset(r.lease.lease_id for r in records) for at, records in wanted.items()):
            rnd.sums = {at: rnd.sums[at] for at in wanted}
            return False
        if not rnd.gathering:
            rnd.gathering = True
            self._hub.spawn(self._gather(run, entry, rnd, wanted))
        return True

    @staticmethod
    def _wanted(entry: Entry, rnd: Round) -> dict[str, list[LeaseRecord]]:
        """The leases of the round that will be merged, by aggregator."""
        found: dict[str, list[LeaseRecord]] = {}
        for record in rnd.accepted:
            beyond = record.spare or (entry.exit_at is not None and record.lease.first > entry.exit_at)
            if isinstance(record.change, Parked) and not beyond:
                found.setdefault(record.change.at, []).append(record)
        return found

    async def _gather(self, run: Run, entry: Entry, rnd: Round, wanted: dict[str, list[LeaseRecord]]) -> None:
        gone = []
        try:
            for at, records in wanted.items():
                if at in rnd.sums and rnd.sums[at].leases == frozenset(r.lease.lease_id for r in records):
                    continue
                if not all(isinstance(r.change, Parked) for r in records):  # lost meanwhile: it is looked at anew below
                    continue
                try:
                    rnd.sums[at] = await self._sum(run, entry, at, records)
                except DepinError as error:
                    log.warning("%s hands no sum on: %s", at, error.message)
                    rnd.sums.pop(at, None)
                    gone.append(at)
        finally:
            rnd.gathering = False
        for at in gone:
            self.lost(at)
        if run.entry is entry and rnd in entry.rounds:
            self._hub.commits.close_rounds(run, entry)
            self._hub.giving.dispatch()

    async def _sum(self, run: Run, entry: Entry, at: str, records: list[LeaseRecord]) -> Sum:
        if self.dial is None:
            raise HubDied("workers can't be called")
        leases = []
        for record in sorted(records, key=lambda r: r.last_index):
            assert isinstance(record.change, Parked)
            leases.append((record.lease.lease_id, record.change.about, max(1, record.samples), record.last_index))
        peer = self.dial(at)
        try:
            said = await self._asked(peer, at, "depin_sum", run=run.run_id, strategy=entry.spec.strategy.to_dict(), leases=leases)
            what, data = announced(said, max_bytes=self._hub.change_limit(run)), bytearray()
            while len(data) < what.size_bytes:
                want = min(what.size_bytes - len(data), 8 << 20)
                part = (await self._asked(peer, at, "depin_part", digest=what.digest, offset=len(data), want=want))["data"]
                if not isinstance(part, (bytes, memoryview)) or not 0 < len(part) <= want:
                    raise CodecError("a part isn't of the size that was asked for")
                data += part
        finally:
            await peer.close()

        def keep() -> Held:
            if hashlib.sha256(data).hexdigest() != what.digest:
                raise CodecError("a sum isn't what its digest says")
            assert run.weights is not None
            held = self._hub.spool.put(data)
            tree.read_sum(held.open()[0], run.weights, max_bytes=self._hub.change_limit(run))
            return held

        run.bytes_up += len(data)
        held = await self._hub.in_executor(keep)
        samples, last = sum(samples for _, _, samples, _ in leases), max(index for *_, index in leases)
        return Sum(frozenset(lease for lease, *_ in leases), samples, last, held)

    @staticmethod
    def contribution(at: str, each: Sum, base: State, max_bytes: int, relief: Relief) -> Contribution:
        """A sum as the merge reads it."""

        def read() -> Change:
            view, mapped = each.change.open()
            relief.add(mapped)
            return tree.read_sum(view, base, max_bytes=max_bytes)

        return Contribution(at, each.samples, each.last_index, read)
