"""A worker process: a Dask worker that dials the hub, and beside it leases on a thread of its own (serving.py)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..backends.base import WORKER_ENV, DeviceProfile, profile
from ..core import config
from ..core.errors import DepinError, HubDied
from ..hub.info import HubInfo
from .serving import LEAVE_S, Serving

if TYPE_CHECKING:
    from .aggregating import Aggregating
    from .dask import Worker
    from .link import Go, HubLink
    from .runner import Ask, LeaseRunner

log = logging.getLogger(__name__)

DASK_THREADS = 2  # for the user's own Dask tasks; leases have their own thread
PATIENCE_S = 60.0  # how long a worker dials after its hub is gone
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 2.0
CONNECT_S = 2.0
# why a Dask worker closes when it has lost its scheduler, or another one is in its place
CUT = ("worker-handle-scheduler-connection-broken", "worker-heartbeat-missing", "worker-heartbeat-error")


class Agent:
    """One device: joins, works, leaves. A lost hub is dialled again for `patience_s`, with its leases kept; then it ends."""

    def __init__(self, scheduler: str, name: str, device: DeviceProfile, backend: str, *, patience_s: float = PATIENCE_S) -> None:
        from ..ledger.wallet import Wallets
        from ..network.shaping import Link
        from .device import Pacer, facts
        from .residuals import residuals_of
        from .runner import LeaseRunner
        from .transfer import Incoming, cache_of

        self.scheduler, self.name, self.device, self.patience_s = scheduler, name, device, patience_s
        self.facts = {**facts(name, device, backend), "process": secrets.token_hex(8)}
        self.wallet = Wallets().device(name).address  # its key stays in its file
        self.handlers: dict[str, Any] | None = None  # of the Dask worker: what other workers and the hub may ask of this one
        self._leaving = asyncio.Event()
        self._sums = ThreadPoolExecutor(1, thread_name_prefix="depin-sums")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="depin", initializer=_one_thread)
        self._link = Link(device.up_mbit_s, device.down_mbit_s, device.latency_ms / 1000)
        pacer = Pacer(device.speed) if device.simulated else None

        def runner(ask: Ask) -> LeaseRunner:

            def ask_peer(address: str, op: str, go: Go, **request: Any) -> Any:
                return self.serving.ask_peer(address, op, go, **request)

            incoming = Incoming(ask, cache_of(config.home()), lambda: self.serving.down_part_bytes, ask_peer)
            return LeaseRunner(ask, pacer, residuals=residuals_of(config.home(), name), incoming=incoming)

        self.serving = Serving(runner, self._executor, name)
        self._working: asyncio.Task[None] | None = None
        self._known = ""  # the hub that it reached last, as hub.json calls it

    def leave(self) -> None:
        self._leaving.set()

    async def run(self) -> int:
        """Exit code 0 when it was told to leave, 1 when the hub was lost and none came in its place."""
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            while not self._leaving.is_set():
                dialling = asyncio.create_task(self._dial())
                await asyncio.wait([dialling, leaving], return_when=asyncio.FIRST_COMPLETED)
                if not dialling.done():
                    dialling.cancel()
                    break
                worker = dialling.result()
                if worker is None:
                    log.error("%s can't reach the hub at %s", self.name, self.scheduler)
                    return 1
                await self._beside(worker, leaving)
        finally:
            leaving.cancel()
            if self._working is not None:
                self._working.cancel()
            await self.serving.stop()
            for executor in (self._executor, self._sums):
                executor.shutdown(wait=False, cancel_futures=True)
        return 0

    async def _dial(self) -> Worker | None:
        """A Dask worker that has reached a hub; None when there is none within the patience."""
        until_s, retry_s = time.monotonic() + self.patience_s, FIRST_RETRY_S
        while True:
            for address in dict.fromkeys(self._addresses()):
                if await _listens(address):
                    worker = self._worker(address)
                    try:
                        await worker
                    except OSError as error:
                        log.warning("%s can't reach the hub at %s: %s", self.name, address, error)
                    else:
                        info = HubInfo.read()
                        self._known = info.hub_id if info is not None else ""
                        return worker
            if time.monotonic() > until_s:
                return None
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def _addresses(self) -> Iterable[str]:
        """Where a hub may be: where it was told to dial, and where the hub of the state folder says that it listens."""
        yield self.scheduler
        info = HubInfo.read()
        if info is not None and info.hub_id != self._known:  # the same hub isn't reached past a line that was cut
            yield info.scheduler

    def _worker(self, scheduler: str) -> Worker:
        from .dask import Worker

        return Worker(
            scheduler,
            name=self.name,
            nthreads=DASK_THREADS,
            memory_limit=0,
            host="127.0.0.1" if "://127." in scheduler else None,
            local_directory=str(config.home() / "scratch"),
            # columns of the dashboard's workers table
            metrics={
                "depin_lease": lambda _: self.serving.lease_id or "-",
                "depin_leases": lambda _: self.serving.leases,
            },
        )

    async def _beside(self, worker: Worker, leaving: asyncio.Task[Any]) -> None:
        """Serves the hub that the worker has reached, until it is gone or says leave."""
        self.handlers = worker.handlers
        serving = asyncio.create_task(self._serve(worker.address, worker.scheduler.address))
        finished = asyncio.create_task(worker.finished())
        try:
            await asyncio.wait([serving, finished, leaving], return_when=asyncio.FIRST_COMPLETED)
            if finished.done() and not leaving.done() and worker.closed_for not in CUT:  # somebody has retired this worker
                self.leave()
            if serving.done() and (problem := serving.exception()) is not None:
                log.warning("%s has lost its hub: %s", self.name, problem)
                if not isinstance(problem, HubDied):
                    raise problem
        finally:
            for task in (serving, finished):
                task.cancel()
            await asyncio.wait([serving, finished], timeout=LEAVE_S)
            with suppress(Exception):
                await asyncio.wait_for(worker.close(timeout=LEAVE_S, reason="leaving"), 2 * LEAVE_S)

    async def _serve(self, address: str, scheduler: str | None = None) -> None:
        """Joins, then asks for leases until the hub says leave. Raises HubDied when it is gone."""
        from .link import HubLink

        hub = HubLink(scheduler or self.scheduler, address, self._link)
        aggregating = self._aggregating(hub)
        try:
            if "link" not in self.facts:
                self.facts["link"] = await hub.measured()
            held = self.serving.held
            answer = await hub.call("depin_join", profile=self.device.name, wallet=self.wallet, facts=self.facts, held=held)
            hub.life = str(answer.get("hub", ""))
            await self.serving.returned(answer.get("keep", ()), answer.get("later", ()))
            log.info("%s has joined", self.name)
            if self._working is None:
                asyncio.get_running_loop().run_in_executor(self._executor, _warm_up)
                self._working = asyncio.create_task(self.serving.work())
            await self.serving.serve(hub, serves=aggregating is not None)
            self.leave()
        finally:
            if aggregating is not None:
                aggregating.close()
            await hub.close()

    def _aggregating(self, hub: HubLink) -> Aggregating | None:
        """Lets other workers hand in their changes here; a *simulated* device is behind a network that nobody gets into."""
        from ..hub.answers import answering
        from .aggregating import Aggregating, folder_of
        from .transfer import cache_of

        if self.handlers is None or self.device.simulated:
            return None
        aggregating = Aggregating(hub, folder_of(config.home(), self.name), cache_of(config.home()), self._sums)
        self.handlers.update({f"depin_{op}": answering(call) for op, call in aggregating.handlers().items()})
        return aggregating


async def _listens(address: str) -> bool:
    """Whether anybody listens there: Dask itself would try for half a minute."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), CONNECT_S)
    except (OSError, ValueError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


def _warm_up() -> None:
    """What the first lease would wait seconds for: the imports, and autograd's own threads."""
    import torch

    from ..loop.halves import record  # noqa: F401
    from ..training import compress  # noqa: F401

    torch.ones(2, requires_grad=True).sum().backward()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="depin-worker", description="Runs one worker of a hub: `depin up` starts them for you.")
    parser.add_argument("scheduler", help="the hub's Dask address, such as tcp://127.0.0.1:8786 (see `depin status`)")
    parser.add_argument("--name", required=True, help="the worker's name; its wallet goes by it")
    parser.add_argument(
        "--profile", default="local", help="device profile (default: local); other ones are simulated: slowed down and delayed"
    )
    parser.add_argument("--backend", default="local", help="the backend that counts this worker as its own (default: local)")
    parser.add_argument("--of-hub", action="store_true", help=argparse.SUPPRESS)  # the hub started it, and ends it
    parser.add_argument(
        "--patience",
        type=float,
        default=float(os.environ.get("DEPIN_WORKER_PATIENCE_S") or PATIENCE_S),
        metavar="S",
        help="how long it dials a hub that is gone, with its finished leases kept, before it ends"
        " (default: DEPIN_WORKER_PATIENCE_S, or %(default).0f)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.of_hub:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the hub's terminal: the hub ends its workers in order
    elif "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # glibc reads these once, when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "depin_nb.worker", *(argv or sys.argv[1:])], {**os.environ, **WORKER_ENV})
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s [{arguments.name}] %(name)s: %(message)s")
    for noisy in ("distributed.worker", "distributed.core", "distributed.http.proxy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        device = profile(arguments.profile)
    except DepinError as error:
        print(f"depin-worker: {error}", file=sys.stderr)
        return 2
    code = asyncio.run(_main(arguments, device))
    logging.shutdown()
    os._exit(code)  # an iteration that is still computing would hold up an ordinary exit


async def _main(arguments: argparse.Namespace, device: DeviceProfile) -> int:
    import torch  # the slow import comes first: a worker that the scheduler shows is ready

    from ..network.randomness import keep_apart

    torch.set_num_threads(1)
    keep_apart()
    agent = Agent(arguments.scheduler, arguments.name, device, arguments.backend, patience_s=arguments.patience)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.leave)
    if not arguments.of_hub:
        loop.add_signal_handler(signal.SIGINT, agent.leave)
    return await agent.run()
