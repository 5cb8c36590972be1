"""Sends a cell off: what it uses is copied into the run's folder, then the hub starts the process that runs it."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...core.errors import NoWorkers, UsageError
from ...hub.detached.folder import DetachedFolder
from ..journalled import journalled, status_of
from .capture import capture
from .results import FUNCTION, RESULT
from .run import DetachedRun, remember

if TYPE_CHECKING:
    from ...loop.cell import LeasedCell, LeasedFunction
    from ..options import TrainOptions
    from ..session import Session


def detach_function(session: Session, cell: LeasedFunction, options: TrainOptions) -> DetachedRun:
    """The same for a function: the cell is its call."""
    source = f"{RESULT} = {FUNCTION}()\n"
    space = cell.namespace
    space[FUNCTION] = cell.function
    try:
        return detach(session, cell, "<depin call>", options, space, source=source)
    finally:
        del space[FUNCTION]


def detach(
    session: Session, cell: LeasedCell, filename: str, options: TrainOptions, namespace: dict[str, Any], *, source: str = ""
) -> DetachedRun:
    """The run, begun. Nothing is left behind when something goes wrong on the way."""
    if options.resume is not None:
        raise UsageError("a detached run can't be resumed yet", hint="Resume it in this kernel: without --detach.")
    source = source or cell.source
    options = replace(options, budget=session.budget if options.budget is None else options.budget)
    workers = session.workers()
    if not workers:
        raise NoWorkers("no worker has joined the hub")
    site = cell.sites[0]
    captured, data = capture(ast.parse(source, filename), source, filename, namespace, options)
    answer = session.hub.call(
        "run_start",
        name=options.name or site.header(),
        where=site.where(),
        budget=None if options.budget is None else options.budget.to_dict(),
        backend="depin" if any(d.simulated for d in workers) else "local",
        source=source,
        workers=options.workers,
        asked=options.asked(),
        share=options.share(),
    )
    run_id = answer["run_id"]
    folder = DetachedFolder(run_id)
    try:
        folder.make()
        folder.write(folder.capture, data)
        session.hub.call("detach", run=run_id)
    except BaseException as error:
        folder.capture.unlink(missing_ok=True)
        session.hub.call("run_finish", run=run_id, outcome="failed", message=f"it could not be detached: {error}")
        raise
    remember(run_id, captured, namespace)
    return held(session, run_id)


def held(session: Session | None, run_id: str) -> DetachedRun:
    """A detached run, followed through `session`'s hub, or through the journal alone."""
    run = journalled(run_id)
    refresh = partial(status_of, session, run_id)
    return DetachedRun(run_id, refresh(), run.load_state, run.losses, folder=DetachedFolder(run_id), refresh=refresh)
