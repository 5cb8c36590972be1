"""Cells whose worker stops in the middle of a chosen iteration until it is let go: faults come at an exact place, without clocks."""

import os
import signal
import threading
from pathlib import Path

from running import PATIENCE_S, eventually

SETUP = """
import os, random, time
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

FOLDER = {folder!r}

class Gate(nn.Module):
    '''Lets a batch through; one whose first feature is 1000 waits here while the gate's file exists.'''
    def forward(self, x):
        hold = os.path.join(FOLDER, "hold")
        if float(x[0, 0]) == 1000.0 and os.path.exists(hold):
            with open(os.path.join(FOLDER, "held.tmp"), "w") as file:
                file.write(str(os.getpid()))
            os.replace(os.path.join(FOLDER, "held.tmp"), os.path.join(FOLDER, "held"))
            end = time.monotonic() + {patience}
            while os.path.exists(hold) and time.monotonic() < end:
                time.sleep(0.01)
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)

X = torch.randn({batches} * 4, 8)
X[{at} * 4, 0] = 1000.0
Y = (X[:, 1:].sum(1) > 0).long()
loader = DataLoader(TensorDataset(X, Y), batch_size=4)
model = nn.Sequential(Gate(), nn.Linear(8, {width}), nn.Tanh(), nn.Linear({width}, 2))
alias = model
opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
lines = []
"""

CELL = """
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        lines.append((epoch, i))
        print(f"{epoch} {i} {loss.item():.9f}")
"""

SOLO_CELL = """
running = 0.0
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        opt.zero_grad()
        loss = F.cross_entropy(model(x) + 0.1 * torch.randn(len(y), 2), y)
        loss.backward()
        opt.step()
        running = 0.9 * running + 0.1 * loss.item()
        lines.append((epoch, i))
        print(f"{epoch} {i} {running:.9f} {random.random():.9f}")
        if running < 1e-6:
            break
"""


class Gated:
    """The gate of one cell: `setup` makes it, `when_held(act)` runs `act(pid)` once a worker stands in iteration `at`, then opens it."""

    def __init__(self, folder, *, at=9, batches=24, width=16):
        self.folder = Path(folder)
        self.at, self.batches = at, batches
        self.setup = SETUP.format(folder=str(folder), patience=PATIENCE_S, at=at, batches=batches, width=width)
        self.failures = []
        self._thread = None

    def close(self):
        (self.folder / "held").unlink(missing_ok=True)
        (self.folder / "hold").touch()

    def open(self):
        (self.folder / "hold").unlink(missing_ok=True)

    def held_by(self):
        """The process that stands in the gate, waited for."""
        return int(eventually((self.folder / "held").exists, "a worker stands in the gate") and (self.folder / "held").read_text())

    def when_held(self, act, *, then_open=True):
        def watch():
            try:
                act(self.held_by())
            except BaseException as error:
                self.failures.append(error)
            finally:
                if then_open:
                    self.open()

        self.close()
        self._thread = threading.Thread(target=watch, name="gate", daemon=True)
        self._thread.start()
        return self

    def done(self):
        """Waits for `act`, and raises what it raised."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self.failures:
            raise self.failures[0]


def kill(pid):
    os.kill(pid, signal.SIGKILL)
