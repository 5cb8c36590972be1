"""How a run begins: its row in the journal, its vault, and, of one that is resumed, what it continues."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from depin_nb.core.amount import DPN, Amount, parse
from depin_nb.core.errors import MoneyError
from depin_nb.hub.leases.shares import claim_of
from depin_nb.hub.records import resumable
from depin_nb.hub.run import Run
from depin_nb.metering.budget import Budget
from depin_nb.metering.meter import Meter

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator
    from depin_nb.hub.records.resuming import Past

MAX_NOTICE = 500


def amount_of(value: Any) -> Amount | None:
    """A budget as it may come: None, an Amount's dict, or text such as `$0.10`. Raises AmountError."""
    if value is None or isinstance(value, Amount):
        return value
    return Amount.from_dict(value) if isinstance(value, dict) else parse(str(value))


@dataclass(frozen=True)
class Start:
    """What a kernel says of a new run (docs/protocol.md). `cap`: the budget as given; `asked`: the user's options; `keep`: for a resume.

    `share`: user, weight and priority among the hub's runs.
    """

    name: str
    where: str
    strategy: str
    backend: str
    source: str
    cap: Amount | None = None
    passes: int | None = None
    workers: int | None = None
    notices: tuple[str, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict)
    keep: bool = True
    ticket: str = ""
    share: dict[str, Any] = field(default_factory=dict)

    def continuing(self, past: Past) -> Start:
        """With what isn't given as the run of then had it."""
        row, options = past.row, {**past.asked.get("options", {}), **self.asked}
        return replace(
            self,
            name=self.name or row.name,
            where=self.where or row.where,
            strategy=self.strategy or row.strategy,
            backend=self.backend or row.backend,
            passes=past.asked.get("passes") if self.passes is None else self.passes,
            workers=options.get("workers") if self.workers is None else self.workers,
            asked=options,
            share={**past.asked.get("share", {}), **{name: value for name, value in self.share.items() if value is not None}},
        )


async def begin(hub: Coordinator, said: Start) -> dict[str, Any]:
    """Opens a new run. Raises MoneyError when its vault can't be funded."""
    cap_dpn = None if said.cap is None else hub.prices.to_dpn(said.cap)
    run = await _open(hub, said, cap_dpn, None)
    return {"run_id": run.run_id, "status": hub.status(run).to_dict()}


async def begun(hub: Coordinator, run: Run) -> dict[str, Any]:
    """The same answer again, for a kernel whose first one was lost with its hub."""
    await hub.reopening.reopen(run.run_id, 0)
    answer: dict[str, Any] = {"run_id": run.run_id, "status": hub.status(run).to_dict()}
    if run.past is not None:
        asked = await hub.in_books(lambda: resumable.asked(hub.journal.connection, run.run_id))
        answer.update(continues=run.continues, past=run.past.outline(), asked=asked["options"])
    return answer


async def resume(hub: Coordinator, said: Start, wanted: str) -> dict[str, Any]:
    """Opens a run that continues `wanted` ("": the newest of the same cell). Raises ResumeError, NoSuchRun, BudgetExhausted, MoneyError."""
    async with hub.resuming.lock:
        past = await hub.resuming.find(wanted, said.source)
        if said.cap is None:
            cap, cap_dpn = hub.resuming.budget_of(past)
            said = replace(said, cap=cap)
        else:
            cap_dpn = hub.prices.to_dpn(said.cap)
        said = said.continuing(past)
        run = await _open(hub, said, cap_dpn, past)
    answer = {"run_id": run.run_id, "status": hub.status(run).to_dict()}
    return {**answer, "continues": past.row.run_id, "past": past.outline(), "asked": said.asked}


async def _open(hub: Coordinator, said: Start, cap_dpn: Amount | None, past: Past | None) -> Run:
    run_id = await hub.in_books(hub.new_run_id)
    zero = Amount(0, DPN)
    claim = claim_of(said.share)
    now, now_s = hub.clock.now(), hub.clock.monotonic()
    run = Run(
        run_id=run_id,
        name=said.name,
        where=said.where,
        strategy=said.strategy,
        backend=said.backend,
        source=said.source,
        cap=said.cap,
        budget=Budget(cap_dpn, zero, zero, run_id),
        meter=Meter(hub.prices),
        started_at=now,
        started_s=now_s,
        seen_s=now_s,
        simulated=said.backend == "depin",
        passes=said.passes,
        most_workers=said.workers,
        keeps=said.keep,
        ticket=said.ticket,
        claim=claim,
    )
    run.meter.start(0.0)
    if past is not None:
        await hub.resuming.take_over(run, past)

    def write() -> None:
        with hub.journal.transaction() as connection:
            hub.journal.add_run(
                run_id, name=run.name, where=run.where, source=run.source, strategy=run.strategy, backend=run.backend,
                budget=None if run.cap is None else run.cap.to_dict(), at=now,
            )  # fmt: skip
            asked = {"options": said.asked, "passes": said.passes, "workers": said.workers, "ticket": said.ticket, "share": asdict(claim)}
            resumable.add_run(connection, run_id, source=run.source, asked=asked, continues=run.continues, kept=said.keep)
        try:
            hub.ledger.open_run(run_id, None if cap_dpn is None else cap_dpn.units)
        except MoneyError as error:
            with hub.journal.transaction() as connection:
                hub.journal.end_run(run_id, state="failed", message=error.message, at=now)
                resumable.drop(connection, run_id)
            raise

    await hub.in_books(write)
    for notice in said.notices:
        run.say("notice", now, notice[:MAX_NOTICE])
    run.seen_s = hub.clock.monotonic()
    hub.runs[run_id] = run
    hub.changed.notify()
    return run
