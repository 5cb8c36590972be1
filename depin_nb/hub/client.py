"""The kernel's side of the `depin_*` operations: plain calls from any thread, typed errors, safe to interrupt."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from distributed.core import rpc
from distributed.utils import LoopRunner
from tornado.ioloop import IOLoop

from depin_nb.hub.info import HubInfo, hub_pid, log_file

from ..core import errors
from ..core.errors import DepinError, HubDied, HubError
from ..network.randomness import keep_apart

CONNECT_TIMEOUT_S = 5.0  # on loopback a living hub answers in milliseconds
_STEP_S = 0.1


class HubClient:
    """Calls a hub from any thread but its own loop's. Close it when done; closing doesn't stop the hub."""

    def __init__(self, info: HubInfo, *, loop: IOLoop | None = None) -> None:
        keep_apart()
        self.info = info
        self._runner = LoopRunner(loop=loop)
        self._runner.start()
        self._rpc = self._on_loop(self._connect())
        self._closed = self._gone = False
        atexit.register(self.close)

    @property
    def loop(self) -> IOLoop:
        """The loop that the calls run on: one thread beside the caller's, shared with the HubCluster made from it."""
        return self._runner.loop

    def call(self, op: str, *, wait_s: float | None = None, **request: Any) -> Any:
        """What the hub answers to `depin_<op>` (the prefix may be given too).

        Waits at most `wait_s`, or for as long as the hub takes. Raises HubDied when the connection is lost, the hub's own errors by
        their types, and HubError for anything else that goes wrong there. KeyboardInterrupt leaves the wait at once; the hub may still
        have done what was asked.
        """
        if self._closed:
            raise HubError("the connection to the hub is closed", hint="Connect again.")
        return self._on_loop(self.acall(op, **request), wait_s)

    async def acall(self, op: str, **request: Any) -> Any:
        """As `call`, awaited on `loop`."""
        op = op if op.startswith("depin_") else f"depin_{op}"
        if self._gone:
            raise HubDied(f"the hub is gone ({op})", log=str(log_file()))
        try:
            answer = await getattr(self._rpc, op)(**request)
        except OSError as error:  # Dask's CommClosedError and RPCClosed among them
            self._gone = hub_pid() != self.info.pid  # then later calls don't try to connect again for CONNECT_TIMEOUT_S each
            raise HubDied(f"the hub stopped answering ({op}: {error})", log=str(log_file())) from None
        except DepinError:
            raise
        except Exception as error:
            raise HubError(f"{op} failed in the hub: {type(error).__name__}: {error}", hint=f"See {log_file()}.") from error
        if isinstance(answer, dict) and "error" in answer and isinstance(answer["error"], dict) and "type" in answer["error"]:
            raise typed(answer["error"])
        return answer

    def renew(self, info: HubInfo) -> None:
        """From now on calls go to that hub, over a new connection. Whoever holds this client goes on with it."""
        if self._closed:
            raise HubError("the connection to the hub is closed", hint="Connect again.")
        with suppress(Exception):
            self._on_loop(self._rpc.close_rpc(), 2.0)
        self.info, self._gone = info, False
        self._rpc = self._on_loop(self._connect())

    def close(self) -> None:
        """Closes the connection; the hub goes on."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        with suppress(Exception):
            self._on_loop(self._rpc.close_rpc(), 2.0)
        self._runner.stop()

    async def _connect(self) -> rpc:
        return rpc(self.info.scheduler, timeout=CONNECT_TIMEOUT_S)

    def _on_loop(self, coroutine: Any, wait_s: float | None = None) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._runner.loop.asyncio_loop)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        deadline = None if wait_s is None else time.monotonic() + wait_s
        try:
            # in short steps: an interrupt is seen between two of them
            while not done.wait(_STEP_S):
                if deadline is not None and time.monotonic() > deadline:
                    raise HubDied(f"the hub did not answer within {wait_s:g} s")
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def __enter__(self) -> HubClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def typed(error: dict[str, Any]) -> DepinError:
    """The error that `{"type", "message", "hint", "fields"}` stands for; a HubError where the type isn't one of core/errors.py."""
    kind = getattr(errors, str(error.get("type", "")), None)
    if not (isinstance(kind, type) and issubclass(kind, DepinError)):
        kind = HubError
    fields = {str(k): v for k, v in (error.get("fields") or {}).items() if k not in ("message", "hint")}
    return kind(str(error.get("message", "the hub reports an error")), hint=str(error.get("hint") or ""), **fields)
