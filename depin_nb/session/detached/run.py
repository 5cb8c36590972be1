"""Detached runs in the notebook's hands: sending a cell off, following it, waiting for it, bringing back what it left."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ...core import config
from ...core.errors import BindError, CodecError, DepinError, HubError, RemoteError, UsageError
from ...core.status import ENDED, Status
from ...hub.detached.folder import DetachedFolder, Outcome
from ...hub.records.journal import Journal
from ...loop.whole.fingerprints import fingerprint
from ..run import Run
from .binding import Undo, bind, bind_state, warn_changed
from .capture import Captured, generators_moved
from .results import FUNCTION, RESULT, Left, read

STEP_S = 0.1
KEPT = 16  # captures whose objects this kernel remembers: they are kept alive by it

_captures: OrderedDict[str, tuple[Captured, dict[str, Any]]] = OrderedDict()


def remember(run_id: str, captured: Captured, namespace: dict[str, Any]) -> None:
    _captures[run_id] = (captured, namespace)
    while len(_captures) > KEPT:
        _captures.popitem(last=False)


@dataclass
class DetachedRun(Run):
    """A run whose notebook half is a process beside the hub. Any kernel can hold it: `depin_nb.attach(RUN)`."""

    folder: DetachedFolder = field(kw_only=True)
    refresh: Callable[[], Status] = field(kw_only=True, repr=False)
    missing: tuple[str, ...] = ()
    _undo: Undo | None = field(default=None, init=False, repr=False)

    @property
    def state(self) -> str:
        """As the hub, the process and the journal say it now."""
        outcome = self.folder.outcome()
        return outcome.state if outcome is not None else self._update().state

    def _update(self) -> Status:
        self.status = self.refresh()
        return self.status

    def logs(self) -> str:
        """What the cell has printed so far, its warnings and its traceback among it."""
        return self.folder.log.read_text(errors="replace")

    def follow(self) -> Iterator[str]:
        """The log's text as it comes, until the run has ended."""
        with open(self.folder.log, errors="replace", newline="") as file:
            while True:
                over = self._over()
                if text := file.read():
                    yield text
                elif over:
                    return
                else:
                    time.sleep(STEP_S)

    def watch(self) -> Iterator[Status]:
        """Statuses, some a second, until the run has ended; the last one is final."""
        while not self._over():
            yield self._update()
            time.sleep(2 * STEP_S)
        yield self._update()

    def wait(self, timeout_s: float | None = None) -> DetachedRun:
        """Returns once the run has ended well.

        Raises what the cell raised; KeyboardInterrupt for a stopped run, as the cell itself would have; HubError for one whose process was
        killed; TimeoutError when it goes on after `timeout_s`. An interrupt here leaves the run alone.
        """
        self._wait(timeout_s)
        self._raise(self._outcome())
        return self

    def bind(self, namespace: dict[str, Any] | None = None, *, partial: bool = False, strict: bool = False) -> DetachedRun:
        """Brings what the run left into `namespace` (the notebook's own where there is none): weights, names, generators.

        In the kernel that detached it, objects stay the objects that they were; in another one they are made anew, or a module of the
        same name and shape takes the weights. Everything is read and checked first; when something fails, nothing has changed (BindError).
        Names that the user changed since are named in a warning; with `strict` they are an error instead. `partial`: what an unsuccessful
        run left, too, instead of raising what it raised; after a killed process the weights of the last merge. `unbind` undoes it.
        """
        self._wait(None)
        outcome = self._outcome()
        if not partial:
            self._raise(outcome)
        captured, own = _captures.get(self.run_id, (None, None))
        space = namespace if namespace is not None else own if own is not None else _shell_names()
        if outcome is None or not outcome.sha256:
            self._undo = bind_state(self.load_state(), space)
            return self
        left = self._left(outcome, captured, space)
        changed = [] if captured is None else self._changed(captured, left, space)
        if changed and strict:
            raise BindError(
                f"{', '.join(changed)} changed here since {self.run_id} was detached",
                names=changed,
                hint="Without strict=True they are replaced, and `run.unbind()` puts them back.",
            )
        self.result = left.names.pop(RESULT, None)
        undo = bind(
            left, space, anchors=captured.anchors if captured is not None else None, roots=captured.roots if captured is not None else None
        )
        self._undo, self.missing = undo, left.missing
        warn_changed(changed, self.run_id)
        return self

    def unbind(self) -> None:
        """Puts back what was there before the last `bind`. Raises UsageError when there was none."""
        if self._undo is None:
            raise UsageError(f"{self.run_id} isn't bound here", hint="`run.bind()` comes first.")
        self._undo.back()
        self._undo = None

    # --- how it stands --------------------------------------------------------------------------------

    def _over(self) -> bool:
        """Whether nothing more will come: the process said how it ended, or it is gone without a word."""
        if self.folder.outcome() is not None:
            return True
        return self._update().state in ENDED and not self.folder.alive()

    def _wait(self, timeout_s: float | None) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._over():
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.run_id} goes on after {timeout_s:g} s")
            time.sleep(STEP_S)
        self._update()

    def _outcome(self) -> Outcome | None:
        return self.folder.outcome()

    def _raise(self, outcome: Outcome | None) -> None:
        if outcome is None:
            raise HubError(
                f"{self.run_id} was cut short: {self._message()}",
                hint="`run.bind(partial=True)` gives the weights of its last merge.",
            )
        if outcome.state == "finished":
            return
        error = self._error(outcome)
        error.add_note(f"In the detached run {self.run_id}:\n{outcome.trace}\n`run.bind(partial=True)` brings back what it had by then.")
        raise error

    def _error(self, outcome: Outcome) -> BaseException:
        if outcome.state in ("stopped", "interrupted"):
            return KeyboardInterrupt(f"{self.run_id} was {outcome.state}{f': {outcome.message}' if outcome.message else ''}")
        captured, own = _captures.get(self.run_id, (None, None))
        if outcome.sha256:
            try:
                error = self._left(outcome, captured, own or {}).error
            except DepinError:
                error = None
            if error is not None:
                return error.with_traceback(None)
        return RemoteError(f"{outcome.kind}: {outcome.message}", type_name=outcome.kind)

    def _message(self) -> str:
        journal = Journal(config.journal_file(), writing=False)
        try:
            return journal.run(self.run_id).message or "its hub ended"
        finally:
            journal.close()

    def _left(self, outcome: Outcome, captured: Captured | None, space: dict[str, Any]) -> Left:
        try:
            data = self.folder.results.read_bytes()
            if sha256(data).hexdigest() != outcome.sha256:
                raise CodecError("its bytes aren't those that the run wrote")
            return read(data, anchors=None if captured is None else captured.anchors, present=space)
        except Exception as error:
            raise BindError(f"the results of {self.run_id} can't be read: {error}; nothing was changed") from error

    @staticmethod
    def _changed(captured: Captured, left: Left, space: dict[str, Any]) -> list[str]:
        """Names that the results would replace and that aren't what they were at the capture."""
        concerned = {*left.touched, *left.names, *left.deleted} - {RESULT, FUNCTION}
        changed = [
            name
            for name in sorted(concerned)
            if (name in space) != (name in captured.prints) or (name in space and fingerprint(space[name]) != captured.prints[name])
        ]
        return changed + (["the random generators"] if generators_moved(captured.generators) else [])


def _shell_names() -> dict[str, Any]:
    ip = sys.modules.get("IPython")
    shell = ip.get_ipython() if ip is not None else None
    if shell is None:
        raise UsageError("there is no notebook here to bind to", hint="Say where: run.bind(globals()).")
    names: dict[str, Any] = shell.user_ns
    return names
