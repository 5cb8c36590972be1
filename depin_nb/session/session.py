"""A Session: a hub, its workers as a Dask cluster, and training on them."""

from __future__ import annotations

import ast
import contextlib
import linecache
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

from ..core import config
from ..core.amount import Amount, parse
from ..core.errors import BudgetExhausted, HubDied, NoSuchRun, NoWorkers
from ..core.state import State
from ..core.status import Device, Status, device_from_dict
from ..hub.client import HubClient
from ..hub.cluster import HubCluster
from ..hub.info import HubInfo
from ..hub.records.journal import Journal
from ..loop.cell import LeasedCell, LeasedFunction
from ..metering import price
from .detached import DetachedRun, detach, detach_function
from .lessor import Lessor, Planned
from .options import TrainOptions
from .plan import Plan
from .run import Run
from .single import LIMIT_S, Single

JOIN_TIMEOUT_S = 60.0  # importing torch on a loaded two-core machine took 15 s at worst


class Session:
    """What `depin_nb.connect` and `%depin up` give. `budget` holds for each run that names none of its own."""

    def __init__(self, info: HubInfo, *, backend: str = "local", budget: Amount | None = None) -> None:
        self.backend, self.budget = backend, budget
        self.hub = HubClient(info)

    @property
    def info(self) -> HubInfo:
        """The hub that it is connected to: another one where a run outlived the first."""
        return self.hub.info

    # --- Dask --------------------------------------------------------------------------------------------

    @cached_property
    def cluster(self) -> HubCluster:
        """The hub as a Dask cluster object: `scale`, `adapt`, `dashboard_link`."""
        return HubCluster(self.info, backend=self.backend, loop=self.hub.loop)

    @cached_property
    def client(self) -> Any:
        """A Dask client of the same cluster, for any other work."""
        from distributed import Client

        return Client(self.cluster, set_as_default=False)

    # --- workers -------------------------------------------------------------------------------------------

    def workers(self) -> list[Device]:
        return [device_from_dict(d) for d in self.hub.call("status")["workers"]]

    def scale(self, count: int, backend: str | None = None) -> list[Device]:
        """Has `count` workers of `backend`, and waits until they have joined. Raises NoWorkers when they don't."""
        backend = backend or self.backend
        names = set(self.hub.call("scale", count=count, backend=backend)["workers"])
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while True:
            here = self.workers()
            gone = [d for d in here if d.name not in names and d.simulated == (backend == "depin")] if backend == self.backend else []
            if names <= {d.name for d in here} and not gone:
                return here
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(names - {d.name for d in here}))
                raise NoWorkers(
                    f"{missing or 'some workers'} did not join within {JOIN_TIMEOUT_S:.0f} s", hint="`depin doctor` looks for the cause."
                )
            time.sleep(0.1)

    def statuses(self) -> list[Status]:
        """The runs that are going on or have just ended, newest last."""
        return [Status.from_dict(s) for s in self.hub.call("status")["runs"]]

    def control(self, run_id: str | None, action: str, value: Any = None) -> Status:
        """pause, resume, stop, a new budget (an Amount or text), or share (`{"weight": .., "priority": ..}`).

        Without a run id: the run that is going on.
        """
        if run_id is None:
            active = [s for s in self.statuses() if not s.ended]
            if not active:
                raise NoSuchRun("no run is going on", run_id="")
            run_id = active[-1].run_id
        wire = value.to_dict() if isinstance(value, Amount) else value
        return Status.from_dict(self.hub.call("control", run=run_id, action=action, value=wire)["status"])

    # --- training ------------------------------------------------------------------------------------------

    def train(
        self,
        function: Callable[[], Any],
        *,
        strategy: str = "auto",
        budget: str | Amount | None = None,
        name: str | None = None,
        workers: int | None = None,
        inner_steps: int | None = None,
        bits: int | None = None,
        resume: str | None = None,
        send: tuple[str, ...] = (),
        data: str = "auto",
        quorum: float | None = None,
        weight: float | None = None,
        priority: str | None = None,
        background: bool = False,
        on_status: Callable[[Status], None] = lambda status: None,
    ) -> Run:
        """Runs an ordinary function that holds (or calls) a training loop, with that loop on the workers.

        The function's own objects are trained, in place. `data`: how datasets travel (auto, whole, samples, worker). `send`: names that
        travel to workers although they look like secrets. `resume`: a run of the same function that was cut short ("": the newest): what
        it did is replayed, without being computed or paid again, and training goes on from there. `quorum`: with `local` and `sparse`, the
        share of a round's samples with which a merge may go ahead without silent and late workers (1: it waits for all).
        `weight` (1 is usual) and `priority` (high, normal, low): its part in devices that several runs want, see docs/shares.md.
        Raises what the loop raises, RefusedLoop for one that can't be leased, BudgetExhausted, NoWorkers, HubDied, ResumeError.

        `background`: returns at once; the function goes on in a process beside the hub, on copies of the objects that it uses, and
        `run.bind()` brings back into them what it left; what it returned is then `run.result`. See `detached`.
        """
        cap = parse(budget) if isinstance(budget, str) else budget
        options = TrainOptions(
            strategy,
            cap,
            name,
            workers,
            inner_steps,
            bits,
            resume,
            send=tuple(send),
            data=data,
            quorum=quorum,
            weight=weight,
            priority=priority,
        )
        cell = LeasedFunction(function)
        if background:
            return detach_function(self, cell, options)
        return self._train(cell, cell.call, options, cell.sites[0].source, on_status)

    def estimate(self, function: Callable[[], Any], **options: Any) -> Plan:
        """What `train` would do: strategy, bytes, time, cost and tokens, here and elsewhere side by side. Spends nothing."""
        cell = LeasedFunction(function)
        return self._plan(cell, cell.call, TrainOptions(**options), cell.sites[0].source)

    @staticmethod
    def debug() -> None:
        """Raises the newest failure again: its iterations run here, on copies, so that `pdb.pm()` stands at the user's own line.

        Returns when the failure doesn't repeat here. Raises UsageError when nothing has failed.
        """
        from ..loop import debug

        error = debug.rerun()
        if error is not None:
            raise error

    def train_cell(
        self, source: str, namespace: dict[str, Any], *, shell: Any, options: TrainOptions, on_status: Callable[[Status], None]
    ) -> Run:
        """The same for a cell's text, executed in `namespace` as the shell would."""
        cell, filename = self._cell(source, namespace, shell)
        return self._train(cell, lambda lessor: cell.run(lessor, _executor(filename, namespace)), options, source, on_status)

    def train_adopted(self, source: str, namespace: dict[str, Any], filename: str, options: TrainOptions, *, run_id: str) -> Run:
        """A detached cell in its own process, for a run that the notebook has opened."""
        cell = LeasedCell(source, namespace, filename)
        execute = _executor(filename, namespace)
        return self._train(cell, lambda lessor: cell.run(lessor, execute), options, source, lambda status: None, adopted=run_id)

    def detach_cell(self, source: str, namespace: dict[str, Any], *, shell: Any, options: TrainOptions) -> DetachedRun:
        """Sends a cell off into a process beside the hub, with a copy of the names that it uses; returns at once. See `detached`.

        Raises RefusedLoop as `train_cell` does, ShipError naming what no copy can be made of, NoWorkers.
        """
        cell, filename = self._cell(source, namespace, shell)
        return detach(self, cell, filename, options, namespace)

    def single_cell(
        self,
        source: str,
        namespace: dict[str, Any],
        *,
        shell: Any,
        options: TrainOptions,
        on_status: Callable[[Status], None],
        limit_s: float | None = None,
    ) -> Run:
        """The whole cell on one worker, whatever it holds; names come back at its end, all together. See `single`."""
        text, filename = self._text(source, shell)
        lessor = self._lessor(options, source, on_status, dry_run=False)
        cell = Single(ast.parse(text, filename), filename, namespace, lessor, limit_s or LIMIT_S)
        return self._led(lessor, lambda lessor: cell.run())

    def plan_cell(self, source: str, namespace: dict[str, Any], *, shell: Any, options: TrainOptions) -> Plan:
        """The plan of a cell; the cell runs up to its loop, on a copy of the namespace."""
        copy = dict(namespace)
        cell, filename = self._cell(source, copy, shell)
        return self._plan(cell, lambda lessor: cell.run(lessor, _executor(filename, copy)), options, source)

    def _cell(self, source: str, namespace: dict[str, Any], shell: Any) -> tuple[LeasedCell, str]:
        source, filename = self._text(source, shell)
        return LeasedCell(source, namespace, filename), filename

    @staticmethod
    def _text(source: str, shell: Any) -> tuple[str, str]:
        """A cell's text as Python, and the name that its lines are known by."""
        if shell is not None:
            source = shell.transform_cell(source)
            return source, shell.compile.cache(source, shell.execution_count, raw_code=source)
        filename = f"<depin cell {abs(hash(source))}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        return source, filename

    def _lessor(self, options: TrainOptions, source: str, on_status: Callable[[Status], None], *, dry_run: bool) -> Lessor:
        if options.resume is None:  # else what the run has left of its own
            options = replace(options, budget=self.budget if options.budget is None else options.budget)
        workers = [d for d in self.workers() if d.state not in ("lost", "left")]
        if not workers and not dry_run:
            raise NoWorkers("no worker has joined the hub")
        backend = "depin" if any(d.simulated for d in workers) else "local"
        if options.budget is not None and not options.budget and not dry_run and any(price.load().price(d.kind).per_tflop for d in workers):
            raise BudgetExhausted(
                f"a budget of {options.budget} pays for no lease of these workers",
                hint="Give one with --budget $0.10, or use workers of your own: `%depin up local`.",
                run_id="",
                spent=Amount(0, options.budget.currency),
                budget=options.budget,
            )
        return Lessor(
            self.hub,
            options,
            workers=workers,
            backend=backend,
            source=source,
            on_status=on_status,
            newest_kept=newest_kept,
            dry_run=dry_run,
        )

    def _train(
        self,
        cell: LeasedCell,
        run: Callable[[Lessor], Any],
        options: TrainOptions,
        source: str,
        on_status: Callable[[Status], None],
        *,
        adopted: str | None = None,
    ) -> Run:
        lessor = self._lessor(options, source, on_status, dry_run=False)
        lessor.adopted = adopted
        if options.resume is not None:
            self._go_on(lessor, options)
        return self._led(lessor, run)

    def _led(self, lessor: Lessor, run: Callable[[Lessor], Any]) -> Run:
        """Runs, and ends the run whatever comes of it."""
        try:
            result = run(lessor)
        except KeyboardInterrupt:
            self._finish(lessor, "interrupted")
            raise
        except BaseException as error:
            self._finish(lessor, "failed", f"{type(error).__name__}: {error}")
            raise
        status = lessor.finish("finished")
        if status is None:
            raise NoWorkers("the cell's loop had no iterations, so nothing was leased", hint="Is the loader empty?")
        run_id = status.run_id
        return Run(run_id, status, lambda: newest_kept(run_id), result=result, sent_bytes=dict(lessor.sent_bytes))

    def _go_on(self, lessor: Lessor, options: TrainOptions) -> None:
        lessor.go_on(options.resume or "")
        status = lessor.status
        if self.budget is not None and status is not None and status.budget is None:  # there was none: this session's holds
            self.control(status.run_id, "budget", self.budget)

    @staticmethod
    def _finish(lessor: Lessor, outcome: str, message: str = "") -> None:
        """Ends a run that is already failing: what goes wrong here must not hide why. A hub that is gone isn't started for it."""
        with contextlib.suppress(HubDied, KeyboardInterrupt):
            lessor.finish(outcome, message, returning=False)

    def _plan(self, cell: LeasedCell, run: Callable[[Lessor], Any], options: TrainOptions, source: str) -> Plan:
        lessor = self._lessor(options, source, lambda status: None, dry_run=True)
        with _generators_kept():
            try:
                run(lessor)
            except Planned as planned:
                return planned.plan
        raise NoWorkers("the loop had no iterations, so there is nothing to plan", hint="Is the loader empty?")

    def close(self) -> None:
        """Closes this notebook's connections; hub and workers go on."""
        for name in ("client", "cluster"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
        self.hub.close()


def newest_kept(run_id: str) -> State:
    """The newest merged version of a run, from the journal's files."""
    journal = Journal(config.journal_file(), writing=False)
    try:
        return State.from_bytes(journal.newest_state(run_id).read_bytes())
    finally:
        journal.close()


def _executor(filename: str, namespace: dict[str, Any]) -> Callable[[ast.Module], None]:
    """Executes a tree as IPython does: the value of a last expression is displayed."""

    def execute(tree: ast.Module) -> None:
        body, last = tree.body, []
        if body and isinstance(body[-1], ast.Expr):
            body, last = body[:-1], body[-1:]
        exec(compile(ast.Module(body=body, type_ignores=[]), filename, "exec"), namespace)
        if last:
            exec(compile(ast.Interactive(body=last), filename, "single"), namespace)

    return execute


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    import numpy as np
    import torch

    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    stdout, sys.stdout = sys.stdout, open("/dev/null", "w")  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = stdout
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])
