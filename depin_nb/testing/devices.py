"""Workers of a history: the real agent and lease runner on a simulated network, with a body that does arithmetic instead of training."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..backends.base import profile
from ..core.codec import decode, encode
from ..core.errors import DepinError, HubDied
from ..core.lease import EntrySpec, Lease, Report
from ..core.state import BUFFER, COUNTER, INNER, PARAM, STEP, State
from ..loop.halves import record
from ..network.shaping import Link
from ..worker import agent as agents
from ..worker import device as facts
from ..worker import link as links
from ..worker.agent import Agent
from ..worker.gauge import Gauge
from .histories import DevicePlan, Fault
from .virtual import Fiber, Process
from .world import NOTICED_S, Comm, Peer, World

WIDTH = 300  # values of the parameter: more than a block, so that 4-bit changes are quantised
NOTICED_SOON_S = 0.05
RETRY_S = 1.0
PATIENT_S = 0.5
_RAMP = torch.linspace(-1, 1, WIDTH)


def first_state(iterations: int) -> State:
    """`count` holds how often each iteration of the run is in the model."""
    tensors = {
        "model/w": torch.zeros(WIDTH),
        "model/b": torch.zeros(4),
        "bn/mean": torch.zeros(3),
        "count": torch.zeros(iterations, dtype=torch.int64),
    }
    return State(tensors, {"model/w": PARAM, "model/b": PARAM, "bn/mean": BUFFER, "count": COUNTER}, {"lr": 0.1})


def step(place: int) -> torch.Tensor:
    """What the iteration at that place of the run adds to the parameter."""
    return _RAMP * (0.01 * ((place * 7) % 11 - 4))


def program(name: str, total: int, unit_s: float, leaves_at: int | None, how: str) -> bytes:
    """A body, as its notebook ships it. `leaves_at`: the place in the run at which it leaves the loop."""
    return encode({"name": name, "total": total, "unit_s": unit_s, "leaves_at": leaves_at, "how": how})


def log_of(name: str, place: int) -> bytes:
    return encode(["log", name, place])


class SumHalf:
    """`worker.runner.Half` of such a program: `spec.seed` is the number of the loop's pass."""

    def __init__(self, data: bytes, blob: Callable[[str], bytes]) -> None:
        self._program = decode(data)
        self._state = State()

    def load(self, state: State) -> None:
        self._state = State({n: t.clone() for n, t in state.tensors.items()}, dict(state.kinds), dict(state.plain))

    def state(self) -> State:
        return State({n: t.clone() for n, t in self._state.tensors.items()}, dict(self._state.kinds), dict(self._state.plain))

    def run(self, lease: Lease, spec: EntrySpec, *, go: Any, paced: Any, reduce: Any) -> record.Outcome:
        device = Device.of_fiber()
        program, outcome, tensors = self._program, record.Outcome(), self._state.tensors
        half = len(lease.units) // 2  # two waits a lease: changing threads is what a history costs most
        for number, unit in enumerate(lease.units):
            if number in (0, half):
                count = half if number < half else len(lease.units) - half
                Fiber.wait_for(lambda works=number == half, count=count: device.compute(count * program["unit_s"], works))  # type: ignore[misc]
            if not go():
                outcome.stopped = True
                return outcome
            place = spec.seed * program["total"] + unit.index
            change = step(place)
            if reduce is not None:
                (mean,) = reduce(number, unit.samples, [change])
                change = mean
            tensors["model/w"] += change
            tensors["model/b"] += 0.001
            tensors["bn/mean"] += 0.1
            tensors["count"][place] += 1
            outcome.done += 1
            outcome.logs.append(log_of(program["name"], place))
            outcome.losses.append((unit.index, 1.0 / (1 + place)))
            outcome.seconds += program["unit_s"] / device.plan.speed
            if place == program["leaves_at"]:
                outcome.exit = program["how"]
                break
        tensors["opt/exp_avg"] = tensors["model/b"] * 0.5
        tensors["opt/step"] = tensors["count"].sum().float()
        self._state.kinds.update({"opt/exp_avg": INNER, "opt/step": STEP})
        outcome.left = encode({"i": lease.units[outcome.done - 1].index})
        return outcome


class Device:
    """A device over all its lives: after a kill or a cut it is back under a new address."""

    by_process: dict[str, Device] = {}

    def __init__(self, world: World, plan: DevicePlan) -> None:
        self.world, self.plan = world, plan
        self.leases = 0
        self.lives = 0
        self.stopped_until_s = 0.0
        self.slow_s = self.next_late_s = 0.0
        self.slow_until_s = 0.0
        self.next_twice = False
        self.process: Process | None = None
        self.comm: Comm | None = None
        self.address = ""
        self.back_s = 0.0
        self.failures: list[str] = []  # what no history excuses
        self._another = ""

    @staticmethod
    def of_fiber() -> Device:
        process = Fiber.here().process
        assert process is not None
        return Device.by_process[process.name]

    async def live(self) -> None:
        """Until the history ends: joins, works, is killed, comes back."""
        await asyncio.sleep(self.plan.joins_s)
        while True:
            await self.world.back.wait()
            self.lives += 1
            name = f"tcp://{self.plan.name}/{self.lives}"
            self.process = Process(name)
            Device.by_process[name] = self
            kind = "local" if self.plan.trusted else self.plan.profile
            device = replace(profile(kind), simulated=False, up_mbit_s=0.0, down_mbit_s=0.0, latency_ms=0.0)
            outside = Process.current.set(self.process)
            agent = Agent(name, self.plan.name, device, "local" if self.plan.trusted else "depin")
            Process.current.reset(outside)
            try:
                await self._connect(agent, self.process)
            finally:
                await self.process.kill()
                del Device.by_process[name]
            await asyncio.sleep(self.back_s)

    async def _connect(self, agent: Agent, process: Process) -> None:
        """One process's connections, each under an address of its own: until it is killed, or told to leave."""
        for number in itertools.count(1):
            await self.world.back.wait()
            if not process.alive:  # it was killed while no hub was there
                return
            self.comm, self.address, self.back_s = Comm(), f"{process.name}/{number}", RETRY_S
            agent.handlers = {} if self.plan.trusted else None
            self.world.serving[self.address] = process, {} if agent.handlers is None else agent.handlers
            serving = process.start(agent._serve(self.address))
            await asyncio.wait({serving})
            del self.world.serving[self.address]
            problem = None if serving.cancelled() else serving.exception()
            if problem is not None and not isinstance(problem, HubDied):
                self.world.tell(f"{self.plan.name} ends: {problem!r}")
                if not isinstance(problem, DepinError):
                    self.failures.append(f"{self.plan.name} ends: {problem!r}")
            self._close(NOTICED_SOON_S)
            if not process.alive or not isinstance(problem, HubDied):
                return
            await asyncio.sleep(self.back_s)

    def _close(self, noticed_s: float) -> None:
        """The connection is closed; the hub learns of it after a while."""
        if self.comm is not None and not self.comm.closed():
            self.comm.close()
            asyncio.get_running_loop().call_later(noticed_s, self.world.lost, self.address)

    # --- what goes wrong --------------------------------------------------------------------------------

    async def at(self, point: str) -> list[Fault]:
        """The device comes to a point of its newest lease (of its next one where it asks). Returns what the caller has to do itself."""
        lease = self.leases + (point == "asks")
        found = self.world.due(self.plan.name, lease, point)
        for fault in found:
            await self._strike(fault)
        return found

    async def _strike(self, fault: Fault) -> None:
        now_s = self.world.clock.at_s
        process = self.process
        assert process is not None
        if fault.kind in ("kill", "vanish"):
            self.back_s = fault.for_s
            process.alive = False
            self._close(NOTICED_SOON_S if fault.kind == "kill" else NOTICED_S)
            for task in list(process.tasks):
                task.cancel()
            await asyncio.sleep(0)
        elif fault.kind == "hub":
            self.world.kill_hub()
        elif fault.kind == "cut":
            self.back_s = min(fault.for_s, 5.0)
            self._close(NOTICED_SOON_S)
        elif fault.kind == "stop":
            self.stopped_until_s = now_s + fault.for_s
            await self._while_stopped()
        elif fault.kind == "slow":
            self.slow_s, self.slow_until_s = min(fault.for_s, 20.0) / 4, now_s + fault.for_s
        elif fault.kind == "duplicate":
            self.next_twice = True
        elif fault.kind in ("reorder", "late"):
            self.next_late_s = fault.for_s if fault.kind == "late" else 0.3

    async def _while_stopped(self) -> None:
        while (left_s := self.stopped_until_s - self.world.clock.at_s) > 0:
            await asyncio.sleep(left_s)

    async def compute(self, work_s: float, works: bool) -> None:
        """So much work of a device of speed 1; with `works`, the middle of the lease comes first."""
        if works:
            await self.at("works")
        longer = self.plan.unsteady * self.world.rng.random() if self.plan.unsteady else 0.0
        await asyncio.sleep(work_s / self.plan.speed * (1 + longer))
        await self._while_stopped()

    async def travel(self) -> None:
        """One way of a message."""
        await self._while_stopped()
        late_s, self.next_late_s = self.next_late_s, 0.0
        slow_s = self.slow_s if self.world.clock.at_s < self.slow_until_s else 0.0
        await asyncio.sleep(self.plan.latency_s / 2 + late_s + slow_s)
        await self._while_stopped()

    # --- what it says ------------------------------------------------------------------------------------

    async def say(self, op: str, request: dict[str, Any]) -> Any:
        """A request of the agent's to the hub, and the answer."""
        request = {**request}
        if op == "depin_lease":
            await self.at("asks")
        elif op == "depin_version":
            await self.at("fetches")
        elif op in ("depin_part", "depin_put") and request["offset"]:
            await self.at("parts")
        elif op == "depin_report":
            for fault in await self.at("reports"):
                request["report"] = self._lying(fault, request["report"])
        twice, self.next_twice = self.next_twice and op in ("depin_lease", "depin_report", "depin_part", "depin_put"), False
        assert self.comm is not None
        answer = await self.world.ask(self.comm, op, request, twice=twice, wait=self.travel)
        if isinstance(answer, dict) and answer.get("lease"):
            self.leases += 1
            self.world.tell(f"{self.plan.name} has lease {answer['lease']['lease_id']} ({len(answer['lease']['units'])})")
            await self.at("leased")
        elif op == "depin_report":
            self.world.tell(f"{self.plan.name} reported {request['report'] if type(request['report']) is str else ''}: {answer}")
            await self.at("reported")
        return answer

    def _lying(self, fault: Fault, report: Any) -> Any:
        if type(report) is not dict:  # it lies already
            return report
        other, self._another = self._another, report["lease_id"]
        if fault.kind == "refuse":
            return Report(report["lease_id"], 0, (), b"", extra={"failed": "no memory", "type": "HubError"}).to_dict()
        if fault.kind != "lie":
            return report
        said: dict[str, Any] = {
            "garbage": {"change": b"\x80\x04garbage"},
            "too many": {"done": report["done"] + 1},
            "too few": {"done": max(0, report["done"] - 1), "logs": report["logs"][:-1]},
            "another's": {"lease_id": other or "run-1-1"},
            "no logs": {"logs": ()},
            "nan": {"seconds": math.nan},
            "not finite": {"change": _changed(report["change"], lambda slots: {n: (k, _poisoned(v)) for n, (k, v) in slots.items()})},
            "bits": {"change": encode({**decode(report["change"]), "bits": 8})},
            "slot": {"change": _changed(report["change"], lambda slots: {**slots, "model/evil": (PARAM, torch.zeros(3))})},
        }
        return "lies" if fault.lie == "no dict" else {**report, **said[fault.lie]}


def _changed(change: bytes, how: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    message = decode(change)
    return encode({**message, "slots": how(message["slots"])})


def _poisoned(value: Any) -> Any:
    """The payload with an infinity where the form has one to check: whole values of 32 bits are the user's own."""
    if isinstance(value, tuple) and isinstance(value[1], torch.Tensor):
        return value[0], torch.full_like(value[1], math.inf)
    return value[:-1] if isinstance(value, torch.Tensor) and value.dim() else value


class SimulatedLink(links.HubLink):
    """The agent's link, over the history's network instead of Dask's."""

    def __init__(self, scheduler: str, worker: str, link: Link) -> None:
        self.worker, self._link = worker, link
        self._device = Device.by_process[scheduler]
        self._clock, self._gauge = self._device.world.clock, Gauge()
        self._rpc = self
        if bytes_ := self._device.world.plan.part_bytes:
            self.whole_bytes = self.up_part_bytes = self.down_part_bytes = bytes_

    def peer(self, address: str) -> Any:
        peer: Any = Peer(self._device.world, address, self.worker, self._device.travel)
        peer.whole_bytes, peer.up_part_bytes = self.whole_bytes, self.up_part_bytes
        return peer

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if not op.startswith("depin_"):
            raise AttributeError(op)
        return lambda **request: self._device.say(op, request)

    def ask(self, op: str, go: links.Go, **request: Any) -> Any:
        if not go():
            raise links.Dropped
        return Fiber.wait_for(lambda: self._asked(op, go, request))

    def ask_peer(self, address: str, op: str, go: links.Go, **request: Any) -> Any:
        if not go():
            raise links.Dropped
        return Fiber.wait_for(lambda: self.peer(address).call(op, **request))

    async def _asked(self, op: str, go: links.Go, request: dict[str, Any]) -> Any:
        call = asyncio.ensure_future(self.call(op, **request))
        call.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear it
        try:
            while not (await asyncio.wait({call}, timeout=PATIENT_S))[0]:
                if not go():
                    raise links.Dropped
        finally:
            call.cancel()
        return call.result()

    async def measured(self) -> dict[str, float]:
        return {"up_mbit_s": 20.0, "down_mbit_s": 50.0, "latency_ms": 1e3 * self._device.plan.latency_s}

    async def changed(self) -> dict[str, float] | None:
        """Measured anew at every eighth lease."""
        return await self.measured() if self._device.leases % 8 == 7 else None

    async def close(self) -> None:
        """Nothing is held."""


def _cache_folder() -> Path:
    """The state folder's of the device whose agent asks: it outlives its processes."""
    process = Process.current.get()
    assert process is not None
    device = Device.by_process[process.name]
    return device.world.home.parent / f"{device.world.home.name}-{'machine' if device.world.plan.one_machine else device.plan.name}"


@contextmanager
def simulated(wallets: Any) -> Iterator[None]:
    """The agent with this link, this body, and facts that cost nothing."""
    from ..ledger import wallet as wallet_module
    from ..worker import aggregating, residuals, transfer

    told = {"compiles": True, "speed": 1.0}
    patches: list[tuple[Any, str, Any]] = [
        (links, "HubLink", SimulatedLink),
        (record, "WorkerHalf", SumHalf),
        (facts, "facts", lambda name, device, backend: {**told, "name": name, "backend": backend, "simulated": backend != "local"}),
        (wallet_module, "Wallets", lambda: wallets),
        (residuals, "residuals_of", lambda home, worker: residuals.Residuals()),  # none outlives its process
        (transfer, "cache_of", lambda home: transfer.Cache(_cache_folder())),
        (aggregating, "folder_of", lambda home, worker: _cache_folder() / "aggregating" / worker),
        (links.Go, "wait", lambda go, seconds: Fiber.wait_for(lambda: asyncio.sleep(seconds))),
        (agents, "_warm_up", lambda: None),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    for module, name, value in patches:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
