"""The kernel's side of a run: what `loop.contract` asks for, said to the hub."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..core.errors import BudgetExhausted, DepinError, HubDied, HubError, NoWorkers, OutOfMemory
from ..core.lease import EntrySpec, StrategyConfig, Unit
from ..core.state import State
from ..core.status import Status
from ..hub.client import HubClient, typed
from ..loop.contract import Entering, Part, Results
from ..loop.probe import Probe
from ..loop.ship.capture import Shipment
from ..training.entering import slot_digests, without
from ..training.strategy import choose
from .options import TrainOptions
from .plan import Plan
from .planning import Fitness, caveats, make_plan
from .reconnecting import Reconnecting
from .resuming import Journalled
from .suiting import suit

POLL_S = 0.25
GANG_LEASE_S = 1.0


class Planned(BaseException):
    """Ends a dry run: the plan is made."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan


class Lessor:
    """One run. `newest_kept` reads the newest version from the journal when the hub itself is gone."""

    def __init__(
        self,
        client: HubClient,
        options: TrainOptions,
        *,
        workers: list[Any],
        backend: str,
        source: str,
        on_status: Callable[[Status], None],
        newest_kept: Callable[[str], State],
        dry_run: bool = False,
    ) -> None:
        self.client = Reconnecting(client, lambda: self.run_id, self._reopen)
        self.options, self.backend, self.source = options, backend, source
        self.workers = workers[: options.workers] if options.workers else workers
        self.on_status, self.newest_kept, self.dry_run = on_status, newest_kept, dry_run
        self.run_id: str | None = None
        self.adopted: str | None = None  # a detached run that the notebook has opened: this process goes on with it
        self.entry: int | None = None
        self.status: Status | None = None
        self.plan: Plan | None = None
        self.outcome = ""
        self.past: Journalled | None = None  # of a resumed run
        self._entering: Entering | None = None
        self._after = 0
        self._entries = 0  # opened of this run
        self._fed: dict[int, tuple[int, bytes, int]] = {}  # units of which there is no result yet
        self._closed = False
        self._ticket = secrets.token_hex(8)
        self._reason = ""
        self._fitness = Fitness()
        self._sent: set[str] = set()
        self._known: dict[str, bytes] = {}  # slots of the newest version as it came here (training/entering.py)
        self.sent_bytes = {"program": 0, "data": 0, "units": 0, "states": 0}  # what this run has sent to its hub

    # --- before anything is spent ---------------------------------------------------------------------

    @property
    def data(self) -> str:
        """Which way datasets travel (`loop.source.WAYS`)."""
        return self.options.data

    @property
    def send(self) -> tuple[str, ...]:
        """Names that travel although they look like secrets."""
        return self.options.send

    def go_on(self, run: str) -> None:
        """Resumes `run` ("": the newest of the same cell): a new run continues it. Raises ResumeError, NoSuchRun, BudgetExhausted."""
        if not self.workers:
            raise NoWorkers("no worker has joined the hub")
        answer = self.client.call(
            "run_start",
            name=self.options.name or "",
            budget=None if self.options.budget is None else self.options.budget.to_dict(),
            backend=self.backend,
            source=self.source,
            workers=self.options.workers,
            asked=self.options.asked(),
            share=self.options.share(),
            resume=run,
            ticket=self._ticket,
        )
        self.run_id = answer["run_id"]
        self.options = self.options.resumed(answer["asked"])
        self.workers = self.workers[: self.options.workers] if self.options.workers else self.workers
        self.past = Journalled(self.client, answer["continues"], answer["run_id"], answer["past"])
        self._tell(answer["status"])

    def choose(self, entering: Entering) -> StrategyConfig:
        self._entering = entering
        requested = None if self.options.strategy == "auto" else self.options.strategy
        strategy, self._reason = choose(
            requested,
            workers=len(self.workers),
            backend=self.backend,
            total=entering.total,
            solo_reason=entering.solo_reason,
            options=self.options.tuning(),
        )
        return strategy

    def _suited(self, strategy: StrategyConfig, seconds: float, state: State) -> StrategyConfig:
        """The strategy, chosen again where depin-nb chooses, now that the model's size and an iteration's time are known."""
        if self._entering is None:
            return strategy
        found = suit(strategy, self._entering, self.options, workers=self.workers, backend=self.backend, step_s=seconds, state=state)
        if found is not None:
            strategy, self._reason = found
        return strategy

    def planned(self, entering: Entering, strategy: StrategyConfig, shipment: Shipment, probe: Probe, state: State) -> None:
        self.plan = None
        if probe.failed is None:
            self._leave_out_small(probe.memory_bytes)
            strategy = self._suited(strategy, probe.seconds, state)
            said = caveats(entering, strategy, shipment, self.workers, self._fitness)
            self.plan = make_plan(
                entering, strategy, self._reason, shipment, probe, state, workers=self.workers, caveats=said, fitness=self._fitness
            )
        if self.dry_run:
            if self.plan is None:
                return  # the iteration itself raises: that is the answer
            raise Planned(self.plan)
        if self.run_id is None and probe.failed is None:
            assert self.plan is not None
            self._start(entering, self.plan)

    def _leave_out_small(self, memory_bytes: int) -> None:
        """The hub gives no lease to a worker in whose memory it doesn't fit. Raises OutOfMemory when none is left."""
        small = self.client.call("needs", packages={}, memory_bytes=memory_bytes).get("small", {})
        self._fitness = replace(self._fitness, small=small, memory_bytes=memory_bytes)
        able = [d for d in self.workers if d.worker_id not in small]
        if self.workers and not able:
            said = "; ".join(self._fitness.too_small())
            raise OutOfMemory(f"no worker has the memory for this loop: {said}", needed=memory_bytes, workers=sorted(small))
        self.workers = able

    def _start(self, entering: Entering, plan: Plan) -> None:
        if not self.workers:
            raise NoWorkers("no worker has joined the hub")
        if self.adopted is not None:
            about: dict[str, Any] = {"strategy": plan.way(), "where": plan.loop(), "passes": entering.passes}
            self.run_id = self.client.call("describe", run=self.adopted, notices=plan.notices(), **about)["run_id"]
            return
        answer = self.client.call(
            "run_start",
            name=self.options.name or entering.site.header(),
            where=plan.loop(),
            strategy=plan.way(),
            budget=None if self.options.budget is None else self.options.budget.to_dict(),
            backend=self.backend,
            source=self.source,
            passes=entering.passes,
            workers=self.options.workers,
            notices=plan.notices(),
            asked=self.options.asked(),
            ticket=self._ticket,
            share=self.options.share(),
        )
        self.run_id = answer["run_id"]

    def admit(self, shipment: Shipment) -> bool:
        """Leaves out the workers that lack packages; True when others remain than were counted on, so that the strategy is chosen anew.
        Learns of their links as they last measured them.

        Raises NoWorkers, with the names, when none is left.
        """
        answer = self.client.call("needs", packages=dict(shipment.manifest.packages))
        self._fitness = Fitness(answer["lacks"], answer["other"], tuple(answer["uncompiled"]))
        links: dict[str, dict[str, float]] = answer["links"]
        known = [replace(d, **links[d.worker_id]) if d.worker_id in links else d for d in self.workers]
        able = [d for d in known if d.worker_id not in self._fitness.lacks]
        changed = len(able) != len(self.workers)
        if changed and not able:
            raise NoWorkers(
                f"no worker has what this loop needs: {'; '.join(self._fitness.sentences())}",
                hint="Install the packages where the workers run, or keep them out of the loop and its dataset.",
            )
        self.workers = able
        return changed

    # --- an entry -----------------------------------------------------------------------------------------

    def open(self, shipment: Shipment, spec: EntrySpec, state: State) -> int:
        assert self.run_id is not None
        program = hashlib.sha256(shipment.program).hexdigest()
        blobs = {program: shipment.program, **shipment.blobs}
        unsent = [digest for digest in blobs if digest not in self._sent]
        for digest in self.client.call("blob_missing", run=self.run_id, digests=unsent)["missing"]:
            self.client.call("blob_put", run=self.run_id, data=blobs[digest])
            self.sent_bytes["program" if digest == program else "data"] += len(blobs[digest])
        self._sent.update(blobs)
        packages = dict(shipment.manifest.packages)
        spec = replace(spec, strategy=self._suited(spec.strategy, spec.seconds_per_iteration, state))
        if self.plan is not None:
            self.plan = replace(self.plan, strategy=spec.strategy, reason=self._reason)
        spec = replace(spec, program=program, blobs=tuple(shipment.blobs), strategy=self._paced(spec), packages=packages)
        self.entry, self._after, self._closed = None, spec.first, False
        self._fed.clear()
        answer = self._entry_open(spec, state)
        self.entry = self._entries = answer["entry"]
        return 2 * max(1, len(self.workers))

    def _entry_open(self, spec: EntrySpec, state: State) -> dict[str, Any]:
        """Sends what the notebook changed since the newest version came here; all of it where the hub's isn't that one."""
        part, same = without(state, self._known)
        about: dict[str, Any] = {"run": self.run_id, "spec": spec.to_dict(), "about": self._about(), "entry": self._entries + 1}
        data = part.to_bytes()
        self.sent_bytes["states"] += len(data)
        answer: dict[str, Any] = self.client.call("entry_open", **about, state=data, same=same)
        if answer.get("whole"):
            data = state.to_bytes()
            self.sent_bytes["states"] += len(data)
            answer = self.client.call("entry_open", **about, state=data)
        return answer

    def _about(self) -> dict[str, Any] | None:
        """Where the entry stands, for a resume, and its plan in short, for the displays."""
        e = self._entering
        if e is None:
            return None
        shown = {} if self.plan is None else {"loop": self.plan.loop(), "strategy": self.plan.way()}
        return {"number": e.number, "header": e.site.header(), "where": e.site.where(), "generators": e.generators, **shown}

    def _paced(self, spec: EntrySpec) -> StrategyConfig:
        """A gang's lease is about a second long, so that prints, displays and an interrupt keep up; its length changes no step."""
        if spec.strategy.name != "sync" or spec.strategy.solo or self.options.inner_steps:
            return spec.strategy
        steps = round(GANG_LEASE_S / spec.seconds_per_iteration)
        return replace(spec.strategy, inner_steps=max(1, min(spec.strategy.inner_steps, steps)))

    def feed(self, units: list[Unit], *, closed: bool) -> int:
        wire = [(u.index, u.data, u.samples) for u in units]
        self.sent_bytes["units"] += sum(len(u.data) for u in units)
        self._fed.update((unit[0], unit) for unit in wire)
        self._closed = self._closed or closed
        answer = self.client.call("units", run=self.run_id, entry=self.entry, units=wire, closed=closed)
        return int(answer["want"])

    def results(self, wait_s: float = POLL_S) -> Results:
        answer = self.client.call("results", run=self.run_id, entry=self.entry, after=self._after, timeout_s=wait_s)
        self._tell(answer["status"])
        parts = tuple(Part(p["first"], tuple(p["logs"]), p["left"], p["exit"]) for p in answer["leases"])
        if parts:
            for index in range(self._after, parts[-1].first + len(parts[-1].logs)):
                self._fed.pop(index, None)
            self._after = parts[-1].first + len(parts[-1].logs)
            self.client.gained()
        return Results(parts, int(answer["want"]), answer["state"], self._error(answer))

    def _reopen(self) -> None:
        """The run goes on at another hub, which is told again of every unit of which there is no result."""
        client = self.client.client
        answer = client.call("run_reopen", run=self.run_id, after=self._after)
        if self.entry is not None and answer["entry"] == self.entry:
            client.call("units", run=self.run_id, entry=self.entry, units=list(self._fed.values()), closed=self._closed)
        self._tell(answer["status"])

    def _tell(self, status: dict[str, Any]) -> None:
        self.status = Status.from_dict(status)
        self.on_status(self.status)

    def _error(self, answer: dict[str, Any]) -> BaseException | None:
        """What a state that ends the loop means for the cell."""
        state = answer["state"]
        if state == "stopped":
            self.outcome = "stopped"
            return KeyboardInterrupt("the run was stopped")
        if state == "budget":
            self.outcome = "budget"
            s = self.status
            assert s is not None
            spent, cap = s.spent.amount, s.budget
            if answer["error"]:  # not the run's own budget: its user's
                return typed(answer["error"])
            return BudgetExhausted(
                f"the next lease would overspend the budget of {cap}: {spent} is spent", run_id=s.run_id, spent=spent, budget=cap
            )
        if state == "no-workers":
            return NoWorkers("every worker is gone, and none came back")
        if state == "failed":
            return typed(answer["error"]) if answer["error"] else HubError("the run failed in the hub")
        return None

    def newest(self) -> State:
        assert self.run_id is not None
        try:
            state = State.from_bytes(self.client.call("state", run=self.run_id)["state"])
        except HubDied:
            return self.newest_kept(self.run_id)
        self._known = slot_digests(state)
        return state

    def close(self, reason: str) -> State:
        try:
            self.client.call("entry_close", run=self.run_id, entry=self.entry, reason=reason)
        except HubDied:
            pass  # the journal has the last merge
        except DepinError:
            if reason == "done":
                raise
        self.entry = None
        return self.newest()

    # --- the end ----------------------------------------------------------------------------------------------

    def finish(self, outcome: str, message: str = "", *, returning: bool = True) -> Status | None:
        """Ends the run and settles it; the last status, None if it never began. `returning`: at the next hub, should this one be gone."""
        if self.run_id is None:
            return None
        client = self.client if returning else self.client.client
        answer = client.call("run_finish", run=self.run_id, outcome=self.outcome or outcome, message=message)
        self._tell(answer["status"])
        return self.status
