"""The process of one detached run (`python -m depin_nb.session.detached.process RUN`): the hub starts it; it outlives the kernel.

It is trusted: it holds a copy of the user's names and runs the user's own code, as the kernel does, and talks to the hub as a kernel does.
Its standard output and error are the run's log. When the hub is killed it goes on, at the next one, as a notebook does.
"""

from __future__ import annotations

import builtins
import logging
import os
import signal
import sys
import traceback
import types
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...core.errors import BudgetExhausted, DepinError
from ...hub.detached.folder import DetachedFolder, Outcome


class Ended(KeyboardInterrupt):
    """The hub told this process to end. A KeyboardInterrupt, so that user code treats it as the Stop button."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when the cell ran to its end, 1 otherwise; the outcome is in the run's folder either way."""
    (run_id,) = sys.argv[1:] if argv is None else argv
    folder = DetachedFolder(run_id)
    lock = folder.lock
    lock.acquire(wait=True)
    lock.write(str(os.getpid()))  # for the next hub, should this one be killed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _ended)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    try:
        outcome = _Detached(folder).run()
    except BaseException as error:  # before or after the cell itself
        outcome = _outcome(error)
        print(outcome.trace, file=sys.stderr)
    sys.stdout.flush()
    folder.end(outcome)
    return int(outcome.state != "finished")


def _ended(number: int, frame: Any) -> None:  # noqa: ARG001
    raise Ended("the hub was shut down")


def _outcome(error: BaseException | None, *, digest: str = "", stopped: bool = False) -> Outcome:
    if error is None:
        return Outcome("finished", digest)
    state = "failed"
    if isinstance(error, KeyboardInterrupt):
        state = "stopped" if stopped else "interrupted"
    elif isinstance(error, BudgetExhausted):
        state = "budget"
    message = error.message if isinstance(error, DepinError) else str(error)
    return Outcome(state, digest, type(error).__name__, message, _trace(error))


def _trace(error: BaseException) -> str:
    """The traceback without our own frames."""
    shown = traceback.TracebackException.from_exception(error)
    package = str(Path(__file__).parents[2])
    shown.stack = traceback.StackSummary.from_list([f for f in shown.stack if not f.filename.startswith(package)])
    return "".join(shown.format()).rstrip()


class _Detached:
    """One run from the captured names to the written results."""

    def __init__(self, folder: DetachedFolder) -> None:
        self.folder = folder

    def run(self) -> Outcome:
        from .copying import Reader, unpack

        data = self.folder.capture.read_bytes()
        self.folder.capture.unlink()  # names may hold secrets: no longer on disk than need be
        opened, graphs, more = unpack(data)
        _surroundings(more)
        found = Reader(graphs["names"], opened, _none).load()
        return self._cell(found, more)

    def _cell(self, found: dict[str, Any], more: dict[str, Any]) -> Outcome:
        """Runs the cell in its names, then writes whatever came of it; an interrupt meanwhile doesn't stop the writing."""
        from ...core.state import State
        from ...loop.ship.objects import write_rng
        from ...loop.whole.anchors import Anchors
        from .results import Before, write

        env = _namespace(found)
        before = Before(Anchors(found["anchors"]), found["roots"], env, found["stored"])
        write_rng(State.from_bytes(more["generators"]))
        error: BaseException | None = None
        try:
            self._train(env, more, found["options"])
        except BaseException as raised:
            error = raised
            if not isinstance(error, Ended):
                print(_trace(error), file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopped = self._finished(error)
        data = write(before, error)
        self.folder.write(self.folder.results, data)
        return _outcome(error, digest=sha256(data).hexdigest(), stopped=stopped)

    def _train(self, env: dict[str, Any], more: dict[str, Any], options: Any) -> None:
        from ...hub.launch import start_hub
        from ..session import Session

        self.session = Session(start_hub())
        self.session.train_adopted(more["source"], env, more["filename"], options, run_id=self.folder.run_id)

    def _finished(self, error: BaseException | None) -> bool:
        """Ends the run at the hub where the cell didn't get to that; whether it was stopped by the user."""
        with suppress(DepinError, AttributeError):
            outcome = "finished" if error is None else _outcome(error).state
            message = "" if error is None else f"{type(error).__name__}: {error}"
            status = self.session.hub.call("run_finish", run=self.folder.run_id, outcome=outcome, message=message)["status"]
            return bool(status["state"] == "stopped")
        return False


def _none(number: int) -> Any:  # noqa: ARG001
    raise LookupError("a capture has no anchors")


def _surroundings(more: dict[str, Any]) -> None:
    """This process as the kernel was: folder, path, environment, numeric settings, and the sources of its cells."""
    import torch

    from .capture import remember_sources

    home = os.environ.get("DEPIN_HOME")
    os.environ.update(more["environ"])
    os.environ["MPLBACKEND"] = "Agg"  # nobody sees a window
    if home is not None:
        os.environ["DEPIN_HOME"] = home
    with suppress(OSError):
        os.chdir(more["cwd"])
    sys.path[:] = ["", *more["path"]]
    remember_sources(more["lines"])
    flags = more["flags"]
    torch.set_default_dtype(getattr(torch, flags["dtype"]))
    torch.set_float32_matmul_precision(flags["matmul"])
    torch.set_num_threads(flags["threads"])


def _namespace(found: dict[str, Any]) -> dict[str, Any]:
    """The names as a notebook's: what the cell's own classes are pickled by is found in `__main__`."""
    env: dict[str, Any] = found["env"]
    main = types.ModuleType("__main__")
    main.__dict__.update(env)
    sys.modules["__main__"] = main
    for tensor, grad in found["grads"]:
        tensor.grad = grad
    for optimizer in found["patched"]:
        _patch(optimizer)
    if "display" not in env:
        from IPython.display import display

        builtins.display = display  # type: ignore[attr-defined]
    return env


def _patch(optimizer: Any) -> None:
    """What a scheduler does to its optimizer when it is made: without it, its first step warns."""
    step = type(optimizer).step

    def tracked(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True
        return step(optimizer, *args, **kwargs)

    tracked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = tracked


if __name__ == "__main__":
    from depin_nb.session.detached import process

    sys.exit(process.main())
