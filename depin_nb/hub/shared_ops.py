"""The operations of docs/protocol.md that kernels, displays and the command line call: controls, and what is shown."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import Amount
from depin_nb.core.errors import DiskFull, HubRestarted, JournalError, NoSuchRun, UsageError
from depin_nb.hub.leases.entry import OUT
from depin_nb.hub.run import Run
from depin_nb.hub.snapshot import device_dict
from depin_nb.hub.starting import amount_of
from depin_nb.training.lifecycle import Trigger

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator


class SharedOps:
    """One method for each operation, by the protocol's names and arguments."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    async def control(self, run: str, action: str, value: Any = None) -> dict[str, Any]:
        """pause, resume, stop, a new `budget` (an Amount's dict or text such as `$0.20`), or a new `share`: weight and priority, or one."""
        active = self._hub.runs.get(run)
        if active is None:
            raise NoSuchRun(f"{run!r} is not an active run", run_id=run)
        if active.waiting_s is not None and action != "stop":
            raise HubRestarted(f"the hub was killed and is back; {run} waits for its notebook", run_id=run)
        now = self._hub.clock.now()
        if action == "pause":
            if active.state == "running":
                active.state = "paused"
                active.say("paused", now)
        elif action == "resume":
            if active.state == "paused":
                active.state = "running"
                active.say("resumed", now)
        elif action == "stop":
            if active.waiting_s is not None:
                await self._hub.finish(active, "stopped", "it was stopped while it waited for its notebook")
            else:
                self._stop(active)
        elif action == "share":
            self._change_share(active, value)
        elif action == "budget":
            await self._raise_budget(active, amount_of(value))
        else:
            raise UsageError(f"{action!r} is not a control", hint="pause, resume, stop, budget or share.")
        if active.entry is not None:
            active.entry.changed.notify()
        self._hub.giving.dispatch()
        self._hub.changed.notify()
        if not active.ended:
            with suppress(JournalError, DiskFull):  # it holds all the same; only a killed hub would forget it
                await self._hub.flush(active, lambda: None)
        return {"status": self._hub.status(active).to_dict()}

    def _change_share(self, run: Run, value: Any) -> None:
        if not isinstance(value, dict) or not any(v is not None for v in value.values()):
            raise UsageError("a share is a weight, a priority or both", hint="Such as `depin runs share RUN --weight 2`.")
        run.claim = run.claim.changed(value)
        said = f"weight {run.claim.weight:g}, {run.claim.priority}"
        run.say("share", self._hub.clock.now(), f"Its share of the devices is now: {said}.", **asdict(run.claim))

    def _stop(self, run: Run) -> None:
        """No more leases; what is out comes to nothing, what is accepted still merges."""
        run.state = "stopping"
        run.say("stop", self._hub.clock.now(), "Stopped from the panel.")
        entry = run.entry
        if entry is None:
            if run.interrupt is not None:
                run.interrupt()
            return
        entry.halt = "stopped"
        for record in [r for rnd in entry.rounds if not rnd.merging for r in rnd.records]:
            if record.state in OUT:
                self._hub.taking.withdraw(run, entry, record, Trigger.LOSE, "the run was stopped")
        self._hub.commits.close_rounds(run, entry)

    async def _raise_budget(self, run: Run, cap: Amount | None) -> None:
        if cap is None:
            raise UsageError("a budget is an amount", hint="Such as $0.20.")
        cap_dpn = self._hub.prices.to_dpn(cap)
        raised = run.budget.raise_to(cap_dpn)  # refuses less than what is committed
        await self._hub.in_books(self._hub.ledger.raise_budget, run.run_id, raised.cap.units if raised.cap is not None else 0)
        run.budget, run.cap = run.budget.raise_to(cap_dpn), cap
        run.warned = run.budget.warning
        run.say("budget", self._hub.clock.now(), f"The budget is now {cap}.")
        await self._hub.flush(run, lambda: self._hub.journal.set_budget(run.run_id, cap.to_dict()))
        if run.entry is not None and run.entry.halt == "budget":
            run.entry.halt = ""

    def status(self, run: str | None = None, full: bool = False) -> dict[str, Any]:
        """`{"status"}` of one run, or `{"runs", "workers"}` of all; `full`: runs from the journal too."""
        hub = self._hub
        if run is not None:
            active = hub.runs.get(run)
            if active is not None:
                active.seen_s = hub.clock.monotonic()
            known = active or hub.ended.get(run)
            if known is not None:
                return {"status": hub.status(known).to_dict()}
            summary = hub.journal.run(run).summary
            if summary is None:
                raise NoSuchRun(f"{run} was cut short and left no summary", run_id=run, hint="`depin_nb.attach` reads what it merged.")
            return {"status": summary}
        runs = [status.to_dict() for status in hub.statuses()]
        if full:
            shown = {status["run_id"] for status in runs}
            runs += [row.summary for row in hub.journal.runs() if row.summary is not None and row.run_id not in shown]
        return {"runs": runs, "workers": [device_dict(d) for d in hub.devices()]}
