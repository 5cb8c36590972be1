"""The kernel's side of a run: what `loop.contract` asks for, said to the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..backends.base import profile
from ..core.errors import BudgetExhausted, DepinError, HubDied, HubError, NoWorkers
from ..core.lease import EntrySpec, StrategyConfig, Unit
from ..core.state import State
from ..core.status import Status
from ..hub.client import HubClient, typed
from ..loop.capture import Shipment
from ..loop.contract import Entering, Part, Results
from ..loop.probe import Probe
from ..metering import price
from ..metering.estimate import FleetDevice, estimate
from ..metering.estimate import Probe as Figures
from ..training.compress import encode_change
from ..training.strategy import choose
from .options import TrainOptions
from .plan import Plan, kinds

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
        self.client, self.options, self.backend, self.source = client, options, backend, source
        self.workers = workers[: options.workers] if options.workers else workers
        self.on_status, self.newest_kept, self.dry_run = on_status, newest_kept, dry_run
        self.run_id: str | None = None
        self.entry: int | None = None
        self.status: Status | None = None
        self.plan: Plan | None = None
        self.outcome = ""
        self._after = 0
        self._reason = ""
        self._sent: set[str] = set()

    # --- before anything is spent ---------------------------------------------------------------------

    def choose(self, entering: Entering) -> StrategyConfig:
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

    def planned(self, entering: Entering, strategy: StrategyConfig, shipment: Shipment, probe: Probe, state: State) -> None:
        if probe.failed is None:
            self.plan = self._plan(entering, strategy, shipment, probe, state)
        if self.dry_run:
            if self.plan is None:
                return  # the iteration itself raises: that is the answer
            raise Planned(self.plan)
        if self.run_id is None and probe.failed is None:
            self._start(entering, strategy)

    def _start(self, entering: Entering, strategy: StrategyConfig) -> None:
        if not self.workers:
            raise NoWorkers("no worker has joined the hub")
        answer = self.client.call(
            "run_start",
            name=self.options.name or entering.site.header(),
            where=entering.site.where(),
            strategy=f"{strategy.name}: {self._reason}",
            budget=None if self.options.budget is None else self.options.budget.to_dict(),
            backend=self.backend,
            source=self.source,
            passes=entering.passes,
            workers=self.options.workers,
            notices=self.caveats(entering, strategy),
        )
        self.run_id = answer["run_id"]

    def _plan(self, entering: Entering, strategy: StrategyConfig, shipment: Shipment, probe: Probe, state: State) -> Plan:
        change = len(encode_change(_like(state), state, bits=strategy.bits, include_inner=strategy.bits == 32)[0])
        iterations = entering.total or 100
        per_round = max(1, strategy.inner_steps * (1 if strategy.solo else len(self.workers)))
        merges = -(-iterations // per_round)
        figures = Figures(probe.flops, probe.seconds, iterations, merges, change, state.nbytes())
        fleet = [_fleet_device(d.kind) for d in self.workers if d.simulated] or [
            _fleet_device(k) for k in ("phone", "laptop", "single-board", "phone")
        ]
        roots = shipment.roots
        named: list[tuple[str, str]] = [
            (label, type(obj).__name__)
            for group in (roots.modules, roots.optimizers, roots.schedulers, roots.scalers, roots.tensors)
            for label, obj in group.items()
        ]
        return Plan(
            where=entering.site.where(),
            strategy=strategy,
            reason=self._reason,
            workers=len(self.workers),
            iterations=entering.total,
            flops_per_iteration=probe.flops,
            seconds_per_iteration=probe.seconds,
            program_bytes=len(shipment.program),
            blob_bytes=sum(map(len, shipment.blobs.values())),
            state_bytes=state.nbytes(),
            change_bytes=change,
            stays=tuple(f"{name} ({type(value).__name__})" for name, value in shipment.ghosts.items()),
            ships=kinds(named),
            caveats=tuple(self.caveats(entering, strategy)),
            rows=tuple(estimate(figures, price.load(), fleet=fleet, local_workers=1)),
        )

    def caveats(self, entering: Entering, strategy: StrategyConfig) -> list[str]:
        """What a user should know before and while it runs, each a sentence."""
        facts, count = entering.facts, len(self.workers)
        said = [*facts.caveats, *(f"one worker does it all: {reason}" for reason in facts.solo[:1] if count > 1)]
        if entering.source_note:
            said.append(entering.source_note)
        if strategy.name == "sync" and not strategy.solo:
            said.append(f"each step averages {count} iterations: the effective batch is {count * entering.samples} samples")
            if facts.stepped:
                said.append(f"{', '.join(sorted(facts.stepped))} steps once with each of these steps, so {count} times less often")
        return said

    # --- an entry -----------------------------------------------------------------------------------------

    def open(self, shipment: Shipment, spec: EntrySpec, state: State) -> int:
        assert self.run_id is not None
        program = hashlib.sha256(shipment.program).hexdigest()
        blobs = {program: shipment.program, **shipment.blobs}
        unsent = [digest for digest in blobs if digest not in self._sent]
        for digest in self.client.call("blob_missing", run=self.run_id, digests=unsent)["missing"]:
            self.client.call("blob_put", run=self.run_id, data=blobs[digest])
        self._sent.update(blobs)
        spec = replace(spec, program=program, blobs=tuple(shipment.blobs), strategy=self._paced(spec))
        answer = self.client.call("entry_open", run=self.run_id, spec=spec.to_dict(), state=state.to_bytes())
        self.entry, self._after = answer["entry"], spec.first
        return 2 * max(1, len(self.workers))

    def _paced(self, spec: EntrySpec) -> StrategyConfig:
        """A gang's lease is about a second long, so that prints, displays and an interrupt keep up; its length changes no step."""
        if spec.strategy.name != "sync" or spec.strategy.solo or self.options.inner_steps:
            return spec.strategy
        steps = round(GANG_LEASE_S / spec.seconds_per_iteration)
        return replace(spec.strategy, inner_steps=max(1, min(spec.strategy.inner_steps, steps)))

    def feed(self, units: list[Unit], *, closed: bool) -> int:
        wire = [(u.index, u.data, u.samples) for u in units]
        answer = self.client.call("units", run=self.run_id, entry=self.entry, units=wire, closed=closed)
        return int(answer["want"])

    def results(self) -> Results:
        answer = self.client.call("results", run=self.run_id, entry=self.entry, after=self._after, timeout_s=POLL_S)
        self._tell(answer["status"])
        parts = tuple(Part(p["first"], tuple(p["logs"]), p["left"], p["exit"]) for p in answer["leases"])
        if parts:
            self._after = parts[-1].first + len(parts[-1].logs)
        return Results(parts, int(answer["want"]), answer["state"], self._error(answer))

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
            return State.from_bytes(self.client.call("state", run=self.run_id)["state"])
        except HubDied:
            return self.newest_kept(self.run_id)

    def close(self, reason: str) -> State:
        try:
            self.client.call("entry_close", run=self.run_id, entry=self.entry, reason="exit" if reason == "error" else reason)
        except HubDied:
            pass  # the journal has the last merge
        except DepinError:
            if reason == "done":
                raise
        self.entry = None
        return self.newest()

    # --- the end ----------------------------------------------------------------------------------------------

    def finish(self, outcome: str, message: str = "") -> Status | None:
        """Ends the run and settles it; the last status, None if it never began."""
        if self.run_id is None:
            return None
        answer = self.client.call("run_finish", run=self.run_id, outcome=self.outcome or outcome, message=message)
        self._tell(answer["status"])
        return self.status


def _fleet_device(kind: str) -> FleetDevice:
    p = profile(kind)
    return FleetDevice(p.name, p.speed, p.up_mbit_s * 1e6, p.down_mbit_s * 1e6, p.latency_ms / 1e3)


def _like(state: State) -> State:
    """A base that differs from `state` everywhere: for the size of a change before there is one."""
    import torch

    tensors = {slot: torch.full_like(t, 1) if t.dtype.is_floating_point else t for slot, t in state.tensors.items()}
    return State(tensors, dict(state.kinds), dict(state.plain))
