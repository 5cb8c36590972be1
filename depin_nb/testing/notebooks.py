"""Users of a history: a kernel that runs a cell over the real protocol, resumes it after a hub's death, and keeps what it saw."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from ..core.amount import DPN, Amount
from ..core.errors import DepinError, HubDied
from ..core.lease import EntrySpec
from ..core.state import State
from ..hub.client import typed
from ..metering.meter import lease_cost
from ..training.entering import slot_digests, without
from .devices import first_state, log_of, program
from .histories import STRATEGIES, NotebookPlan
from .virtual import Process
from .world import Comm, World

FLOPS = 10**12
SAMPLES = 2
MAX_TRIES = 6
MAX_RETURNS = 20
POLL_S = 5.0


class Gone(Exception):
    """The kernel is killed, or interrupted by its user."""


class Notebook:
    """`seen`: places of the iterations replayed, by pass, in the order in which they came. `runs`: (run id, how it ended for the user)."""

    def __init__(self, world: World, plan: NotebookPlan) -> None:
        self.world, self.plan = world, plan
        self.seen: dict[int, list[int]] = {}
        self.left_at: dict[int, int] = {}
        self.runs: list[str] = []
        self.outcome = ""
        self.errors: list[str] = []
        self.final: tuple[int, State] | None = None  # (version, state) as loaded when it finished
        self.comm = Comm()
        self.run_id = ""
        self._places: list[int] = []  # seen of the pass that is under way
        self._sent: dict[int, tuple[int, bytes, int]] = {}  # to its entry
        self._closed = False
        self._entry = self._entries = 0
        self._answers = 0
        self._budget_raised = False

    @property
    def source(self) -> str:
        return f"for x in {self.plan.name}: ..."

    @property
    def leaves_at(self) -> int | None:
        """The place in the run at which the body leaves."""
        plan = self.plan
        return None if plan.leaves_at is None else (plan.entries - 1) * plan.total + plan.leaves_at

    async def live(self) -> None:
        await asyncio.sleep(self.plan.starts_s)
        for _ in range(MAX_TRIES):
            await self.world.back.wait()
            self.comm = Comm()
            process = Process(self.plan.name)
            cell = process.start(self._ran(self._resumable()))
            await asyncio.wait({cell})
            await process.kill()
            self.comm.close()
            try:
                self.outcome = cell.result()
            except (HubDied, OSError):
                self.outcome = "hub died"
            except Gone as gone:
                self.outcome = str(gone)
            except DepinError as error:
                self.outcome = "error"
                self.errors.append(f"{type(error).__name__}: {error.message}")
            self.world.tell(f"{self.plan.name}: {self.outcome} {self.errors[-1:]}")
            if self.outcome in ("finished", "stopped", "interrupted") or not self.plan.resumes:
                return
            if self.outcome == "error" and not self.world.disk_was_full:
                return
            await asyncio.sleep(1.0)

    async def _ran(self, resume: str | None) -> str:
        begun = len(self.runs)
        try:
            return await self._cell(resume)
        except HubDied:
            raise
        except DepinError:
            if len(self.runs) > begun:
                with suppress(DepinError, OSError):
                    await self._finish("failed")
            raise

    def _resumable(self) -> str | None:
        hub = self.world.hub
        assert hub is not None
        heads = {row.run_id for row in hub.journal.runs() if row.resumable}
        return next((run for run in reversed(self.runs) if run in heads), None) if self.runs else None

    async def ask(self, op: str, **request: Any) -> Any:
        """Asks, of the next hub where this one is gone."""
        for _ in range(MAX_RETURNS):
            try:
                return await self._asked(op, **request)
            except (HubDied, OSError):
                if not self.plan.reconnects:
                    raise
                await self._return(reopen=op != "run_finish")  # that ends one which waits, too
        raise HubDied("it is gone again and again")

    async def _return(self, *, reopen: bool) -> None:
        """The run goes on at the next hub: it hears again of every unit of which there is no result."""
        for _ in range(MAX_RETURNS):
            await self.world.back.wait()
            self.comm.close()
            self.comm = Comm()
            if not self.run_id or not reopen:
                return
            try:
                opened = await self._asked("run_reopen", run=self.run_id, after=len(self._places))
                self.world.tell(f"{self.plan.name} goes on with {self.run_id}: {opened['entry']}")
                if opened["entry"] == self._entry and self._entry:
                    units = [u for i, u in sorted(self._sent.items()) if i >= len(self._places)]
                    await self._asked("units", run=self.run_id, entry=self._entry, units=units, closed=self._closed)
                return
            except (HubDied, OSError):
                await asyncio.sleep(0.1)
            except DepinError as error:
                self.world.tell(f"{self.plan.name} can't go on with {self.run_id}: {error.message}")
                raise HubDied(error.message) from None
        raise HubDied("it is gone again and again")

    async def _asked(self, op: str, **request: Any) -> Any:
        answer = await self.world.ask(self.comm, f"depin_{op}", request, wait=self._travel)
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict) and "type" in answer["error"]:
            raise typed(answer["error"])
        return answer

    async def _travel(self) -> None:
        await asyncio.sleep(0.001)

    # --- the cell -----------------------------------------------------------------------------------------

    async def _cell(self, resume: str | None) -> str:
        plan = self.plan
        digest = (await self._start(resume))["digest"]
        strategy = STRATEGIES[plan.strategy]
        state: bytes | None = first_state(plan.entries * plan.total).to_bytes()
        left = False
        for number in range(1, plan.entries + 1):
            places: list[int] = []
            self.seen[number] = places
            past = self._past.get(number)
            if past is not None:
                state = await self._replayed(number, places)
                if past["complete"]:
                    continue
            left = len(places) > 0 and self._base(number) + places[-1] == self.leaves_at
            while len(places) < plan.total and not left:
                spec = EntrySpec(
                    digest,
                    (),
                    strategy,
                    plan.total if plan.known else None,
                    number - 1,
                    FLOPS,
                    plan.unit_s,
                    1 << 20,
                    SAMPLES,
                    len(places),
                    contiguous=plan.leaves_at is not None and not strategy.solo,
                )
                self._places, self._sent, self._closed = places, {}, False
                self._entry = 0
                opened = await self._opened(spec, state, number)
                self._entry = self._entries = opened["entry"]
                state = None
                how, left = await self._loop(opened["entry"], number, places)
                if how in ("stopped", "budget", "no-workers", "failed"):
                    await self.ask("entry_close", run=self.run_id, entry=opened["entry"], reason="interrupt")
                    outcome = {"stopped": "stopped", "budget": "budget"}.get(how, "failed")
                    return await self._finish(outcome)
                reason = "interrupt" if how == "solo-lost" else "exit" if left else "done"
                closed = await self.ask("entry_close", run=self.run_id, entry=opened["entry"], reason=reason)
                told = await self.ask("state", run=self.run_id)
                assert told["version"] == closed["version"], "the newest version is the one that the entry ended with"
                self.final = told["version"], State.from_bytes(told["state"])
        return await self._finish("finished")

    async def _opened(self, spec: EntrySpec, state: bytes | None, number: int) -> dict[str, Any]:
        """Without `state`, as a kernel that changed nothing since the newest version came here."""
        same: dict[str, bytes] = {}
        if state is None:
            assert self.final is not None
            part, same = without(self.final[1], slot_digests(self.final[1]))
            assert not part.tensors
            state = part.to_bytes()
        about = {"number": number}
        opened = await self.ask(
            "entry_open", run=self.run_id, spec=spec.to_dict(), state=state, about=about, same=same, entry=self._entries + 1
        )
        assert "whole" not in opened, "the hub has what the kernel has"
        return dict(opened)

    async def _start(self, resume: str | None) -> dict[str, Any]:
        plan, prices = self.plan, self.world.prices
        self.run_id = ""
        budget: Any = None
        if plan.budget is not None:
            cost = max(lease_cost(prices, d.profile, FLOPS).units for d in self.world.plan.devices) * plan.total * plan.entries
            budget = Amount(max(1, cost * plan.budget // 100), DPN).to_dict()
        started = await self.ask(
            "run_start",
            name=f"{plan.name} x {plan.entries}",
            strategy=plan.strategy,
            budget=None if resume is not None else budget,
            backend="depin",
            source=self.source,
            share={"user": plan.name, "weight": plan.weight, "priority": plan.priority},
            resume=resume,
            ticket=f"{plan.name} {len(self.runs)}",
        )
        self.run_id = started["run_id"]
        self.runs.append(self.run_id)
        self._past = {chapter["number"]: chapter for chapter in started.get("past", ())}
        self._entry = self._entries = 0
        self.world.tell(f"{plan.name} starts {self.run_id} {'continuing ' + str(started.get('continues')) if resume else ''}")
        body = program(plan.name, plan.total, plan.unit_s, self.leaves_at, plan.how)
        return await self.ask("blob_put", run=self.run_id, data=body)

    def _base(self, number: int) -> int:
        return (number - 1) * self.plan.total

    def _take(self, number: int, places: list[int], first: int, logs: list[bytes]) -> None:
        assert first == len(places), f"results come in loop order: {first} after {len(places)}"
        for offset, text in enumerate(logs):
            place = first + offset
            assert text == log_of(self.plan.name, self._base(number) + place), f"the log of iteration {place} of pass {number}"
            places.append(place)

    async def _replayed(self, number: int, places: list[int]) -> bytes:
        while leases := (await self.ask("replay", run=self.run_id, number=number, after=len(places)))["leases"]:
            for lease in leases:
                self._take(number, places, lease["first"], lease["logs"])
        assert len(places) == self._past[number]["merged"], "the logs of what is said to be merged are there"
        return (await self.ask("kept", run=self.run_id, number=number))["state"]

    async def _loop(self, entry: int, number: int, places: list[int]) -> tuple[str, bool]:
        """Feeds and collects until the entry is over. Returns (state of the entry, whether the body left the loop)."""
        plan, fed = self.plan, len(places)
        want = (await self.ask("units", run=self.run_id, entry=entry, units=[], closed=False))["want"]
        while True:
            count = min(want, plan.total - fed, len(places) + plan.batch - fed)
            if count > 0:
                units = [(i, b"%d" % (self._base(number) + i), SAMPLES) for i in range(fed, fed + count)]
                fed += count
                self._sent.update((unit[0], unit) for unit in units)
                self._closed = fed == plan.total
                await self.ask("units", run=self.run_id, entry=entry, units=units, closed=fed == plan.total)
            answer = await self.ask("results", run=self.run_id, entry=entry, after=len(places), timeout_s=POLL_S)
            self._answers += 1
            await self._trouble(entry)
            for lease in answer["leases"]:
                self._take(number, places, lease["first"], lease["logs"])
                if lease["exit"]:
                    assert lease["exit"] == plan.how
                    assert self._base(number) + places[-1] == self.leaves_at, "only the body leaves its loop"
                    return "running", True
            want = answer["want"]
            if answer["state"] == "budget" and not self._budget_raised and self.plan.budget == 60:
                self._budget_raised = True
                await self.ask("control", run=self.run_id, action="budget", value="$1.00")
                continue
            if answer["state"] == "failed":
                self.errors.append(str((answer["error"] or {}).get("message")))
            if answer["state"] not in ("running", "paused") or len(places) == plan.total:
                return answer["state"], False

    async def _trouble(self, entry: int) -> None:
        """What the user does, or suffers."""
        for fault in self.world.due(self.plan.name, self._answers, "answered"):
            if fault.kind == "pause":
                await self.ask("control", run=self.run_id, action="pause")
                asyncio.get_running_loop().create_task(self._later(fault.for_s))
            elif fault.kind == "halt":
                await self.ask("control", run=self.run_id, action="stop")
            elif fault.kind == "budget":
                await self.ask("control", run=self.run_id, action="budget", value="$2.00")
            elif fault.kind == "share":
                await self.ask("control", run=self.run_id, action="share", value={"weight": 4.0, "priority": "high"})
            elif fault.kind == "interrupt":
                await self.ask("entry_close", run=self.run_id, entry=entry, reason="interrupt")
                await self._finish("interrupted")
                raise Gone("interrupted")
            elif fault.kind == "die":
                raise Gone("died")
            elif fault.kind == "cut":
                self.comm.close()
                self.comm = Comm()

    async def _later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.ask("control", run=self.run_id, action="resume")

    async def _finish(self, outcome: str) -> str:
        status = (await self.ask("run_finish", run=self.run_id, outcome=outcome))["status"]
        return str(status["state"])
