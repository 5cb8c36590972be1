"""A worker process: a Dask worker that dials the hub, and beside it leases on a thread of its own (serving.py)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..backends.base import WORKER_ENV, DeviceProfile, profile
from ..core import config
from ..core.errors import DepinError
from .serving import LEAVE_S, Serving

if TYPE_CHECKING:
    from .aggregating import Aggregating
    from .link import HubLink

log = logging.getLogger(__name__)

DASK_THREADS = 2  # for the user's own Dask tasks; leases have their own thread


class Agent:
    """One device: joins, works, leaves. A lost hub ends it."""

    def __init__(self, scheduler: str, name: str, device: DeviceProfile, backend: str) -> None:
        from ..ledger.wallet import Wallets
        from .device import facts

        self.scheduler, self.name, self.device = scheduler, name, device
        self.facts = facts(name, device, backend)
        self.wallet = Wallets().device(name).address  # its key stays in its file
        self.serving: Serving | None = None
        self.handlers: dict[str, Any] | None = None  # of the Dask worker: what other workers and the hub may ask of this one
        self._leaving = asyncio.Event()
        self._sums = ThreadPoolExecutor(1, thread_name_prefix="depin-sums")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="depin", initializer=_one_thread)

    def leave(self) -> None:
        self._leaving.set()

    async def run(self) -> int:
        """Exit code 0 when it was told to leave, 1 when the hub was lost."""
        from distributed import Worker

        worker = Worker(
            self.scheduler,
            name=self.name,
            nthreads=DASK_THREADS,
            memory_limit=0,
            host="127.0.0.1" if "://127." in self.scheduler else None,
            local_directory=str(config.home() / "scratch"),
            # columns of the dashboard's workers table
            metrics={
                "depin_lease": lambda _: (self.serving.lease_id if self.serving else "") or "-",
                "depin_leases": lambda _: self.serving.leases if self.serving else 0,
            },
        )
        self.handlers = worker.handlers
        try:
            await worker
        except OSError as error:
            log.error("%s can't reach the hub at %s: %s", self.name, self.scheduler, error)
            return 1
        tasks = [
            asyncio.create_task(self._serve(worker.address)),
            asyncio.create_task(self._leaving.wait()),
            asyncio.create_task(worker.finished()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            lost = not self._leaving.is_set()
            serving = tasks[0]
            if serving.done() and (problem := serving.exception()) is not None:
                log.warning("%s ends: %s", self.name, problem)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=LEAVE_S)
            with suppress(Exception):
                await asyncio.wait_for(worker.close(timeout=LEAVE_S, reason="leaving"), 2 * LEAVE_S)
            for executor in (self._executor, self._sums):
                executor.shutdown(wait=False, cancel_futures=True)
        return int(lost)

    async def _serve(self, address: str) -> None:
        """Joins, then asks for leases until the hub says leave. Raises HubDied when it is gone."""
        from ..network.shaping import Link
        from .device import Pacer
        from .link import HubLink
        from .residuals import residuals_of
        from .runner import LeaseRunner
        from .transfer import Incoming, cache_of

        device = self.device
        hub = HubLink(self.scheduler, address, Link(device.up_mbit_s, device.down_mbit_s, device.latency_ms / 1000))
        pacer = Pacer(device.speed) if device.simulated else None
        incoming = Incoming(hub.ask, cache_of(config.home()), lambda: hub.down_part_bytes, hub.ask_peer)
        runner = LeaseRunner(hub.ask, pacer, residuals=residuals_of(config.home(), self.name), incoming=incoming)
        aggregating = self._aggregating(hub)
        try:
            await hub.call("depin_join", profile=device.name, wallet=self.wallet, facts={**self.facts, "link": await hub.measured()})
            log.info("%s has joined", self.name)
            asyncio.get_running_loop().run_in_executor(self._executor, _warm_up)
            self.serving = Serving(hub, runner, self._executor, self.name, serves=aggregating is not None)
            await self.serving.run()
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


def _warm_up() -> None:
    """What the first lease would wait seconds for: the imports, and autograd's own threads."""
    import torch

    from ..loop.halves import record  # noqa: F401
    from ..training import compress  # noqa: F401

    torch.ones(2, requires_grad=True).sum().backward()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _end_with(descriptor: int) -> None:
    """Ends this process at once when the other end of its standard input closes: the hub is gone, however it went."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(descriptor, 1024):
                pass
        os._exit(1)

    threading.Thread(target=watch, name="until-stdin-closes", daemon=True).start()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="depin-worker", description="Runs one worker of a hub: `depin up` starts them for you.")
    parser.add_argument("scheduler", help="the hub's Dask address, such as tcp://127.0.0.1:8786 (see `depin status`)")
    parser.add_argument("--name", required=True, help="the worker's name; its wallet goes by it")
    parser.add_argument(
        "--profile", default="local", help="device profile (default: local); other ones are simulated: slowed down and delayed"
    )
    parser.add_argument("--backend", default="local", help="the backend that counts this worker as its own (default: local)")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when the standard input closes, as the hub's own workers do")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.until_stdin_closes:
        _end_with(os.dup(0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody else may wait on the hub's pipe
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
    agent = Agent(arguments.scheduler, arguments.name, device, arguments.backend)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.leave)
    if not arguments.until_stdin_closes:
        loop.add_signal_handler(signal.SIGINT, agent.leave)
    return await agent.run()
