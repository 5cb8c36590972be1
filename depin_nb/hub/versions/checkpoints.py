"""When a run's checkpoints are written, and by whom: the part of the coordinator that is told of each merge. Never on the event loop."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from depin_nb.core.state import State
from depin_nb.hub.records import resumable
from depin_nb.hub.run import Run
from depin_nb.hub.versions.checkpoint_files import CheckpointFiles, Told

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

log = logging.getLogger(__name__)

EVERY_S = 60.0  # at least so long between two of a run, ..
SHARE = 0.05  # .. and so much longer that writing takes at most this share of the time
AT_ENTRY_ENDS_S = 2.0  # the end of a loop entry doesn't wait for EVERY_S; entries shorter than this share one
LAST_KEPT = 3


def due(since_s: float, took_s: float, *, entry_end: bool) -> bool:
    """Whether a checkpoint is written now. `since_s`: since the last one was begun; `took_s`: how long that one took."""
    return since_s >= max(AT_ENTRY_ENDS_S if entry_end else EVERY_S, took_s / SHARE)


@dataclass
class Written:
    """What is known of a run's checkpoints while it goes on. Times monotonic, in seconds; `version`: of the newest one."""

    begun_s: float
    took_s: float = 0.0
    version: int = -1
    program: str = ""
    failed: str = ""
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()


class Checkpoints:
    """At most one of a run is being written; what comes while it is waits for the next occasion, only the run's end for it to be done."""

    def __init__(self, hub: Coordinator, files: CheckpointFiles) -> None:
        self._hub, self.files = hub, files
        self._runs: dict[str, Written] = {}

    def _of(self, run: Run) -> Written:
        return self._runs.setdefault(run.run_id, Written(run.started_s))

    def merged(self, run: Run, *, entry_end: bool = False) -> None:
        """The run has a new version, in memory and in the journal. Returns at once."""
        known = self._of(run)
        known.program = run.entry.spec.program if run.entry is not None else known.program
        since_s = self._hub.clock.monotonic() - known.begun_s
        if not known.busy and run.version > known.version and due(since_s, known.took_s, entry_end=entry_end):
            self._begin(run, known)

    async def ended(self, run: Run) -> None:
        """The run is over: its last version is a checkpoint too. Returns once it is on disk, or has failed to get there."""
        known = self._of(run)
        if known.task is not None:
            await known.task
        if run.merges and run.version > known.version and run.weights is not None:  # not of one that waited for its notebook
            await self._begin(run, known)
        self.forget(run)

    def forget(self, run: Run) -> None:
        self._runs.pop(run.run_id, None)

    def _begin(self, run: Run, known: Written) -> asyncio.Task[None]:
        assert run.weights is not None
        known.begun_s = self._hub.clock.monotonic()
        source = resumable.digest_of(run.source)
        now = self._hub.clock.now()
        told = Told(run.run_id, run.version, run.entries, run.iterations, run.samples, None, now, known.program, source)
        known.task = asyncio.get_running_loop().create_task(self._write(run, known, run.weights, told))
        return known.task

    async def _write(self, run: Run, known: Written, state: State, told: Told) -> None:
        """A state isn't changed once it is made (a merge makes the next one), so a thread may read it while training goes on."""
        hub, loop = self._hub, asyncio.get_running_loop()
        began_s = loop.time()

        def write() -> None:
            points = hub.journal.points(run.run_id, known.version, told.version)
            loss = sum(points) / len(points) if points else math.nan
            self.files.write(state, replace(told, loss=loss if math.isfinite(loss) else None))
            self.files.keep(run.run_id, LAST_KEPT)

        try:
            await hub.in_executor(write)
        except Exception as error:  # training goes on: what is merged is in the run's state
            log.warning("no checkpoint of %s: %s", run.run_id, error)
            if known.failed != str(error):
                known.failed = str(error)
                run.say("checkpoint-failed", hub.clock.now(), f"A checkpoint could not be written ({error}); training goes on without.")
        else:
            known.version, known.failed = told.version, ""
            run.say("checkpoint", hub.clock.now(), version=told.version)
        known.took_s = loop.time() - began_s
