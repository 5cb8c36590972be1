"""An in-process fleet on the real coordinator: workers that do arithmetic instead of training, a kernel that feeds and collects."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from depin_nb.core.codec import encode
from depin_nb.core.lease import EntrySpec, Lease, Report, StrategyConfig
from depin_nb.core.state import BUFFER, COUNTER, INNER, PARAM, STEP, State
from depin_nb.hub.coordinator import Coordinator
from depin_nb.hub.records.journal import Journal
from depin_nb.hub.records.reopening import REOPEN_S
from depin_nb.ledger import store
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.ledger.ledger import Ledger
from depin_nb.ledger.wallet import Wallet, Wallets
from depin_nb.metering import price
from depin_nb.training.allreduce import decode_grads, encode_grads
from depin_nb.training.compress import encode_change
from depin_nb.training.downlink import apply_step, digest_of

torch.set_num_threads(1)

SYNC = StrategyConfig(name="sync", solo=False, inner_steps=4)
SOLO = StrategyConfig()
LOCAL = StrategyConfig(name="local", solo=False, inner_steps=5, bits=4)
TFLOP = 10**12


class FakeClock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def now(self) -> float:
        return 1.7e9 + self.at_s

    def monotonic(self) -> float:
        return self.at_s


class Hub:
    """The coordinator with real journal, ledger and embedded chain in `home`."""

    def __init__(self, home: Path) -> None:
        self.clock = FakeClock()
        self.executor, self.books = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.journal = Journal(home / "journal.sqlite")
        wallets = Wallets(home / "wallets")
        self.chain = EmbeddedChain(home / "chain.sqlite", wallets)
        self.ledger = Ledger(partial(store.connect, home / "journal.sqlite"), self.chain, wallets)
        self.coordinator = Coordinator(
            home=home,
            clock=self.clock,
            journal=self.journal,
            ledger=self.ledger,
            prices=price.load(),
            executor=self.executor,
            books=self.books,
        )
        self.program = self.coordinator.blobs.put(b"program")

    def kill(self) -> None:
        """Ends it as SIGKILL would: nothing is finished, files are just no longer held."""
        self.executor.shutdown(wait=True)
        self.books.submit(self.ledger.close).result()
        self.books.shutdown(wait=True)
        self.chain.close()
        self.journal.close()

    def spec(self, strategy: StrategyConfig, total: int | None = None, flops: int = TFLOP, first: int = 0) -> EntrySpec:
        return EntrySpec(self.program, (), strategy, total, 7, flops, 0.01, 1 << 20, 2, first)


@asynccontextmanager
async def hub_in(home: Path) -> AsyncIterator[Hub]:
    hub = Hub(home)
    try:
        yield hub
        await asyncio.wait_for(hub.coordinator.close(), 20)
    finally:
        hub.kill()


async def nobody_came(hub: Hub) -> None:
    """After `recover`: the time is over in which notebooks of a killed hub's runs come back."""
    hub.clock.at_s += REOPEN_S + 1
    hub.coordinator.tick()
    while hub.coordinator._tasks:
        await asyncio.wait(hub.coordinator._tasks)


def first_state() -> State:
    """`n` counts iterations, so after all merges it must equal their number."""
    return State(
        {
            "model/w": torch.linspace(-1, 1, 600),
            "model/b": torch.zeros(4),
            "bn/mean": torch.zeros(3),
            "bn/n": torch.tensor(0),
        },
        {"model/w": PARAM, "model/b": PARAM, "bn/mean": BUFFER, "bn/n": COUNTER},
        {"lr": 0.1},
    )


def worked(base: State, lease: Lease, done: int) -> State:
    """What training `done` units of the lease makes of `base`."""
    tensors = {name: t.clone() for name, t in base.tensors.items()}
    kinds = dict(base.kinds)
    for unit in lease.units[:done]:
        torch.manual_seed(unit.index)
        tensors["model/w"] += torch.randn(600) * 0.01
        tensors["model/b"] += 0.001 * (unit.index + 1)
        tensors["bn/mean"] += 0.1
        tensors["bn/n"] += 1
    tensors["opt/exp_avg"] = tensors["model/b"] * 0.5
    kinds["opt/exp_avg"] = INNER
    tensors["opt/step"] = tensors["bn/n"].float()
    kinds["opt/step"] = STEP
    return State(tensors, kinds, dict(base.plain))


Plan = Callable[[Lease], tuple[int, str]]  # lease -> (iterations done, exit)


class FakeWorker:
    """Joins and works until told to leave. `act(lease)`: None = work; `die`, `hang`, `garbage`."""

    def __init__(
        self,
        hub: Hub,
        name: str,
        profile: str = "phone",
        speed: float = 1.0,
        act: Callable[[Lease], str | None] | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.hub, self.name, self.profile, self.speed = hub, name, profile, speed
        self.address = f"tcp://{name}"
        self.wallet = Wallet.new(name).address
        self.act = act or (lambda lease: None)
        self.plan = plan or (lambda lease: (len(lease.units), ""))
        self.leases: list[Lease] = []
        self.refused: list[dict[str, Any]] = []
        self.unsent: dict[str, Any] | None = None  # the report that a dead one could still hand in
        self.troubled: asyncio.Queue[tuple[FakeWorker, str]] | None = None  # told of every death and hang
        self.on_lease = asyncio.Event()
        self.gate: asyncio.Event | None = None  # when set, each report waits for it
        self.task: asyncio.Task[None] | None = None
        self.held: tuple[int, bytes, State] | None = None  # the reference, where versions travel by steps
        self.fetched: list[str] = []
        self._living: tuple[int, State] | None = None

    @property
    def ops(self) -> Any:
        return self.hub.coordinator.workers

    def start(self) -> FakeWorker:
        facts = {"name": self.name, "speed": self.speed, "simulated": True, "backend": "local" if self.profile == "local" else "depin"}
        self.ops.join(self.address, self.profile, self.wallet, facts)
        self.task = asyncio.get_running_loop().create_task(self._work())
        return self

    async def _work(self) -> None:
        while True:
            answer = await self.ops.lease(self.address, 30)
            if "leave" in answer:
                return
            if "wait" in answer:
                continue
            lease = Lease.from_dict(answer["lease"])
            self.leases.append(lease)
            self.on_lease.set()
            if await self._lease(lease) == "die":
                return

    async def _lease(self, lease: Lease) -> str:
        what = self.act(lease)
        base = await self._base(lease)
        done, left_by = self.plan(lease)
        report = self.report(lease, base, done, left_by)
        if what == "die":
            self.unsent = report
            self.hub.coordinator.worker_lost(self.address)
        if what in ("die", "hang") and self.troubled is not None:
            self.troubled.put_nowait((self, what))
        if what == "die":
            return "die"
        if what == "hang":
            self.unsent = report
            await asyncio.Event().wait()
        if what == "garbage":
            report["change"] = b"\x80\x04garbage"
        if self.gate is not None:
            await self.gate.wait()
        if lease.gang and not await self._steps(lease, done):
            return "aborted"
        answer = await self.ops.report(self.address, report)
        if answer["accepted"] and self._solo(lease):
            self._living = (lease.base_version + 1, self._last)
        else:
            self.refused.append(answer)
            self._living = None
        return "done"

    async def _steps(self, lease: Lease, done: int) -> bool:
        for step in range(done):
            data = encode_grads([torch.full((3,), float(lease.rank + 1), dtype=torch.float64)])
            answer = await self.ops.reduce(self.address, lease.run_id, lease.gang, step, lease.rank, lease.units[step].samples, data)
            if "abort" in answer:
                return False
            (mean,) = decode_grads(answer["data"], max_bytes=1 << 20)
            size = lease.group_size[step]
            assert mean is not None
            assert torch.allclose(mean, torch.full((3,), (size + 1) / 2, dtype=torch.float64))
        return True

    async def _base(self, lease: Lease) -> State:
        if self._living is not None and self._living[0] == lease.base_version:
            return self._living[1]
        have = None if self.held is None else {"version": self.held[0], "digest": self.held[1]}
        answer = await self.ops.version(self.address, lease.run_id, lease.base_version, have)
        if "steps" in answer:
            assert self.held is not None
            state = self.held[2]
            for data in answer["steps"]:
                state = apply_step(state, data, max_bytes=1 << 20)
            assert digest_of(state) == answer["digest"]
        else:
            state = State.from_bytes(answer["state"])
        self.fetched.append("steps" if "steps" in answer else "whole")
        self.held = (lease.base_version, answer["digest"], state) if "digest" in answer else None
        return state

    def _solo(self, lease: Lease) -> bool:
        entry = self.hub.coordinator.runs[lease.run_id].entry
        return entry is not None and entry.spec.strategy.solo

    def report(self, lease: Lease, base: State, done: int, left_by: str) -> dict[str, Any]:
        spec = self.hub.coordinator.runs[lease.run_id].entry.spec  # type: ignore[union-attr]
        new = self._last = worked(base, lease, done)
        if lease.gang:  # replicas agree on everything but their own buffers
            torch.manual_seed(max(lease.groups[:done]))
            new.tensors["model/w"] = base.tensors["model/w"] + torch.randn(600)
        change, _ = encode_change(base, new, bits=spec.strategy.bits, include_inner=lease.final or spec.strategy.bits == 32)
        logs = tuple(encode(["log", u.index]) for u in lease.units[:done])
        losses = tuple((u.index, 1.0 / (1 + u.index)) for u in lease.units[:done])
        last = lease.units[done - 1].index
        return Report(lease.lease_id, done, logs, change, encode({"i": last}), left_by, losses, 0.1).to_dict()


class Kernel:
    """The kernel's side of one run."""

    def __init__(self, hub: Hub, run_id: str) -> None:
        self.hub, self.run_id = hub, run_id
        self.logs: list[bytes] = []
        self.answers: list[dict[str, Any]] = []
        self.entry = 0
        self.version = -1

    @property
    def ops(self) -> Any:
        return self.hub.coordinator.kernel

    @classmethod
    async def open(cls, hub: Hub, budget: Any = None, backend: str = "depin") -> Kernel:
        answer = await hub.coordinator.kernel.run_start("test", "cell 1, line 1", "auto", budget, backend, "for x in y: ...")
        return cls(hub, answer["run_id"])

    async def enter(self, spec: EntrySpec, state: State | None) -> None:
        answer = await self.ops.entry_open(self.run_id, spec.to_dict(), None if state is None else state.to_bytes())
        self.entry, self.version = answer["entry"], answer["version"]

    async def loop(self, total: int, first: int = 0, batch: int | None = None, until: str = "") -> str:
        """Feeds `total` iterations as they are wanted (at most `batch` ahead of the results), collects all logs. Returns how it ended."""
        fed, got = first, first
        want = self.ops.units(self.run_id, self.entry, [], False)["want"]
        while True:
            room = total - fed if batch is None else min(total - fed, got + batch - fed)
            if (count := min(want, room)) > 0:
                units = [(i, b"%d" % i, 2) for i in range(fed, fed + count)]
                fed += count
                self.ops.units(self.run_id, self.entry, units, fed == total)
            answer = await asyncio.wait_for(self.ops.results(self.run_id, self.entry, got, 20), 30)
            self.answers.append(answer)
            for lease in answer["leases"]:
                assert lease["first"] == got
                self.logs += lease["logs"]
                got += len(lease["logs"])
                if lease["exit"]:
                    return str(lease["exit"])
            want = answer["want"]
            if answer["state"] not in ("running", "paused") or got == total:
                return str(answer["state"])

    async def close(self, reason: str = "done") -> State:
        answer = await self.ops.entry_close(self.run_id, self.entry, reason)
        data = await self.ops.state(self.run_id)
        assert data["version"] == answer["version"]
        return State.from_bytes(data["state"])

    async def finish(self, outcome: str = "finished") -> dict[str, Any]:
        return (await self.ops.run_finish(self.run_id, outcome, ""))["status"]

    def indices(self) -> list[int]:
        from depin_nb.core.codec import decode

        return [decode(text)[1] for text in self.logs]

    def counted(self) -> list[int]:
        """Unit indices that merged leases hold, with repetitions."""
        return [i for i, _ in self.hub.journal.merged_units(self.run_id, self.entry)]


def seeded(seed: int, share: float, kinds: tuple[str, ...]) -> Callable[[Lease], str | None]:
    """Misbehaves at a share of leases."""
    rng = random.Random(seed)
    return lambda lease: rng.choice(kinds) if rng.random() < share else None
