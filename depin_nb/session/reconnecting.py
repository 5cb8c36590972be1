"""Calls to a hub that may be killed meanwhile: the next one is found or started, the run reopened there, and the call made again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..core import config
from ..core.errors import DepinError, HubDied, JournalError, NoSuchRun
from ..hub.client import HubClient
from ..hub.info import hub_pid
from ..hub.launch import find_hub, start_hub
from ..hub.records.journal import Journal

MAX_RETURNS = 5  # without anything gained in between: what kills every hub kills the next one too
ENDING_S = 30.0  # what a hub that doesn't answer, and is there, gets to end
STEP_S = 0.1
UNOPENED = ("run_start", "run_finish")  # need no run that is open: asked again, these answer the same

Reopen = Callable[[], None]


class Reconnecting:
    """`call` as `HubClient.call`. `run` gives the run that goes on (None: not begun), `reopen` makes it go on at another hub."""

    def __init__(self, client: HubClient, run: Callable[[], str | None], reopen: Reopen) -> None:
        self.client = client
        self._run, self._reopen = run, reopen
        self._returns = 0
        self.hint = "`%depin up`, then `%%depin train --resume {run}` on top of the same cell."

    def gained(self) -> None:
        """Something came of it: the next lost hub is a new misfortune."""
        self._returns = 0

    def call(self, op: str, **request: Any) -> Any:
        """Raises HubDied when no hub can be reached, or one after the other is lost, with what the user can do then."""
        while True:
            try:
                return self.client.call(op, **request)
            except HubDied as died:
                self._return(died, reopen=op not in UNOPENED)

    def _return(self, died: HubDied, *, reopen: bool) -> None:
        while True:
            self._returns += 1
            if self._returns > MAX_RETURNS or self._ended():
                raise self._lost(died) from None
            try:
                self._reach()
                if reopen and self._run() is not None:
                    self._reopen()
                break
            except HubDied as error:
                died = error
            except DepinError as error:  # it has ended, or there is no hub to be had
                raise self._lost(error) from None
        self._say(f"depin: the hub was gone and is back{f'; {self._run()} goes on' if self._run() else ''}")

    def _reach(self) -> None:
        """A hub of this state folder: the one that is there, or a new one. Raises HubError when none gets ready."""
        before = self.client.info
        if before.home != str(config.home()):
            raise DepinError("its state folder isn't this one's")
        until_s = time.monotonic() + ENDING_S
        while hub_pid() == before.pid and find_hub() is None and time.monotonic() < until_s:
            time.sleep(STEP_S)  # it ends, or is stuck in ending
        self.client.renew(find_hub() or start_hub())

    def _ended(self) -> bool:
        """Whether the run was ended in order (`%depin down`): then no hub is started for it."""
        run_id = self._run()
        if run_id is None or not config.journal_file().exists():
            return False
        with suppress(JournalError, NoSuchRun):
            journal = Journal(config.journal_file(), writing=False)
            try:
                return journal.run(run_id).ended_at is not None
            finally:
                journal.close()
        return False

    def _lost(self, error: DepinError) -> HubDied:
        run_id = self._run()
        return HubDied(error.message, hint=self.hint.format(run=run_id) if run_id is not None else "", **error.fields)

    @staticmethod
    def _say(text: str) -> None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
