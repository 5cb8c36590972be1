"""Faults on real processes: one run on a real hub with real workers, and a fault at many of its iterations.

The body waits at its gate in an iteration that has a fault, until the fault has come: no clocks, and each comes at its place. Workers
are replaced as they go; a killed hub is started again by the notebook, whose run goes on.
"""

from __future__ import annotations

import linecache
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from .. import wiring
from ..core.errors import DepinError
from ..core.status import Status
from ..hub.launch import find_hub
from ..session import TrainOptions
from ..session.session import Session
from .cables import Cables
from .nursery import Nursery

STEP_S = 0.02
PATIENCE_S = 120.0  # only for what is broken
KINDS = (("kill", 12), ("stop", 3), ("cut", 5))

SETUP = """
import os, time
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

FOLDER = {folder!r}

class Gate(nn.Module):
    '''The first feature is the batch's number: a batch waits here while the file of its fault exists.'''
    def forward(self, x):
        number = str(int(x[0, 0]))
        hold, held = os.path.join(FOLDER, "hold-" + number), os.path.join(FOLDER, "held-" + number)
        if os.path.exists(hold):
            with open(held + ".tmp", "w") as file:
                file.write(str(os.getpid()))
            os.replace(held + ".tmp", held)
            end = time.monotonic() + {patience}
            while os.path.exists(hold) and time.monotonic() < end:
                time.sleep(0.005)
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)

torch.manual_seed(0)
X = torch.randn({batches} * 4, 8)
X[:, 0] = torch.arange({batches}).repeat_interleave(4)
Y = (X[:, 1:].sum(1) > 0).long()
loader = DataLoader(TensorDataset(X, Y), batch_size=4)
model = nn.Sequential(Gate(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
opt = torch.optim.SGD(model.parameters(), lr=0.05)
seen, losses = [], []
"""

CELL = """
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    seen.append(i)
    losses.append(loss.item())
"""


def plan(seed: int, faults: int, *, hub_kills: int) -> dict[int, str]:
    """Which fault comes in which of about a fifth more iterations: `kill`, `stop` (SIGSTOP, SIGCONT), `cut`, `hub` (SIGKILL of the hub)."""
    rng = random.Random(f"depin-nb storm {seed}")
    kinds = [kind for kind, weight in KINDS for _ in range(weight)]
    drawn = [rng.choice(kinds) for _ in range(faults - hub_kills)]
    places = sorted(rng.sample(range(1, batches(faults)), faults))
    late = places[faults // 4 :]  # there is something to go on with
    at = set(rng.sample(late, hub_kills))
    return {place: "hub" if place in at else drawn.pop() for place in places}


def batches(faults: int) -> int:
    return faults + faults // 5 + 2


@dataclass
class Storm:
    """One run through `plan`. `come`: the faults that came, by kind; `runs`: the ids of the runs that it took: one;
    `replaced_s`: seconds from a fault until a new worker had joined."""

    home: Path
    folder: Path
    seed: int
    faults: int
    hub_kills: int = 2
    workers: int = 3
    come: Counter[str] = field(default_factory=Counter)
    runs: list[str] = field(default_factory=list)
    replaced_s: list[float] = field(default_factory=list)
    namespace: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.plan = plan(self.seed, self.faults, hub_kills=self.hub_kills)
        self._names: dict[int, str] = {}  # by process id
        self._born = 0
        self._awaited: dict[str, float] = {}  # new workers by name, and when the fault came that they replace
        self._over = threading.Event()
        self._failed: list[BaseException] = []

    def run(self) -> Storm:
        """Returns once the run has finished. Raises what went wrong."""
        for place in self.plan:
            (self.folder / f"hold-{place}").touch()
        with ExitStack() as stack:
            self._cables = stack.enter_context(Cables())
            self._nursery = stack.enter_context(Nursery(self.home, self.folder / "workers.log"))
            watching = threading.Thread(target=self._watch, name="storm", daemon=True)
            self._open_hub()
            watching.start()
            try:
                self._train()
            finally:
                self._over.set()
                for place in self.plan:
                    (self.folder / f"hold-{place}").unlink(missing_ok=True)
                watching.join(PATIENCE_S)
        if self._failed:
            raise self._failed[0]
        return self

    # --- the notebook -----------------------------------------------------------------------------------

    def _open_hub(self) -> None:
        self.session: Session = wiring.up("local", 0)
        for _ in range(self.workers):
            self._start_worker()
        self._until(lambda: len(self.session.workers()) >= self.workers, "the workers join")

    def _train(self) -> None:
        namespace = self.namespace = {"__name__": "__main__"}
        exec(
            compile(SETUP.format(folder=str(self.folder), patience=PATIENCE_S, batches=batches(self.faults)), "<setup>", "exec"), namespace
        )
        linecache.cache["<setup>"] = (len(SETUP), None, SETUP.splitlines(keepends=True), "<setup>")
        options = TrainOptions(strategy="local", inner_steps=2)
        self.session.train_cell(CELL, namespace, shell=None, options=options, on_status=self._note)

    def _note(self, status: Status) -> None:
        if status.run_id not in self.runs:
            self.runs.append(status.run_id)

    # --- the faults ---------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self._born += 1
        name = f"storm-{self._born}"
        address = self._cables.lay(name, self.session.info.scheduler)
        self._names[self._nursery.start(address, "--name", name)] = name

    def _watch(self) -> None:
        try:
            while not self._over.wait(STEP_S):
                for held in sorted(self.folder.glob("held-*[0-9]")):
                    self._strike(int(held.name.removeprefix("held-")), int(held.read_text()))
                    held.unlink(missing_ok=True)
                if self._awaited:
                    self._greet()
        except BaseException as error:
            self._failed.append(error)
            for place in self.plan:
                (self.folder / f"hold-{place}").unlink(missing_ok=True)

    def _strike(self, place: int, pid: int) -> None:
        hold = self.folder / f"hold-{place}"
        if not hold.exists() or not _alive(pid):
            return  # it died of another fault: the iteration will be here again
        kind = self.plan[place]
        began_s = time.monotonic()
        if kind == "kill":
            os.kill(pid, signal.SIGKILL)
        elif kind == "stop":
            os.kill(pid, signal.SIGSTOP)
            self._until(lambda: not _alive(pid) or psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it stops")
        elif kind == "cut":
            self._cables.cut(self._names[pid])
        elif kind == "hub":
            before = self.session.info.pid
            os.kill(before, signal.SIGKILL)
        hold.unlink()
        self.come[kind] += 1
        if kind == "stop":
            os.kill(pid, signal.SIGCONT)
        elif kind == "hub":
            self._until(lambda: (now := find_hub()) is not None and now.pid != before, "the hub is back")
        else:
            self._start_worker()
            self._awaited[f"storm-{self._born}"] = began_s

    def _greet(self) -> None:
        """Notes who has joined in a lost worker's place."""
        with suppress(DepinError):
            for name in {d.name for d in self.session.workers()} & self._awaited.keys():
                self.replaced_s.append(time.monotonic() - self._awaited.pop(name))

    def _until(self, condition: Any, what: str) -> None:
        end_s, never = time.monotonic() + PATIENCE_S, threading.Event()
        while not condition():
            if time.monotonic() > end_s:
                raise TimeoutError(f"never came true: {what}")
            never.wait(STEP_S)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
