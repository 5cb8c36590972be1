"""The loops that the benchmarks run: as text, so that the same loop runs here, through a hub, and under others' frameworks."""

from __future__ import annotations

import contextlib
import io
import linecache
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SYNTHETIC = """
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
torch.manual_seed({seed})
X = torch.randn(2048, {width})
Y = (X[:, :10] + 0.5 * torch.randn(2048, 10)).argmax(1)
data = TensorDataset(X, Y)
loader = DataLoader(data, batch_size={batch}, sampler=RandomSampler(data, replacement=True, num_samples={iterations} * {batch}))
model = nn.Sequential(nn.Linear({width}, {hidden}), nn.ReLU(), nn.Linear({hidden}, {hidden}), nn.ReLU(), nn.Linear({hidden}, 10))
opt = torch.optim.Adam(model.parameters(), lr=1e-3)
"""

DIGITS = """
import time
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from sklearn.datasets import load_digits
digits = load_digits()
X, Y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
order = torch.randperm(len(X), generator=torch.Generator().manual_seed({seed}))
torch.manual_seed({seed})
loader = DataLoader(TensorDataset(X[order[:1437]], Y[order[:1437]]), batch_size={batch}, shuffle=True)
X_test, Y_test = X[order[1437:]], Y[order[1437:]]
model = nn.Sequential(nn.Linear(64, {hidden}), nn.ReLU(), nn.Linear({hidden}, {hidden}), nn.ReLU(), nn.Linear({hidden}, 10))
opt = torch.optim.Adam(model.parameters(), lr=1e-3)
held_out, at_s = [], []
def test_loss():
    with torch.no_grad():
        return F.cross_entropy(model(X_test), Y_test).item()
"""

ONE_PASS = """
for x, y in loader:
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    opt.step()
"""

PASSES = """
for epoch in range({epochs}):
    for x, y in loader:
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
"""

PASSES_TESTED = """
begun_s = time.perf_counter()
for epoch in range({epochs}):
    for x, y in loader:
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    held_out.append(test_loss())
    at_s.append(time.perf_counter() - begun_s)
"""


@dataclass(frozen=True)
class Task:
    """`setup` and `cell` with their figures filled in."""

    setup: str
    cell: str

    def namespace(self) -> dict[str, Any]:
        """What the setup defines, as a notebook's first cell would."""
        space: dict[str, Any] = {"__name__": "__main__"}
        name = f"<setup {abs(hash(self.setup))}>"
        linecache.cache[name] = (len(self.setup), None, self.setup.splitlines(keepends=True), name)
        exec(compile(self.setup, name, "exec"), space)
        return space

    def plain(self) -> tuple[float, dict[str, Any]]:
        """Seconds of the cell in this process, and the names after it."""
        space, code = self.namespace(), compile(self.cell, "<cell>", "exec")
        start = time.perf_counter()
        exec(code, space)
        return time.perf_counter() - start, space

    def leased(self, session: Any, on_status: Callable[[Any], None] = lambda status: None, **options: Any) -> Leased:
        """The cell through a hub, with `TrainOptions` of these options."""
        from depin_nb.session import TrainOptions

        space = self.namespace()
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            run = session.train_cell(self.cell, space, shell=None, options=TrainOptions(**options), on_status=on_status)
        return Leased(run.run_id, time.perf_counter() - start, space)


@dataclass(frozen=True)
class Leased:
    """A run that ended: `seconds` of the whole call (probe, shipping, settlement included), and the names after it."""

    run_id: str
    seconds: float
    namespace: dict[str, Any]


def synthetic(*, iterations: int, batch: int, width: int, hidden: int, epochs: int = 1, seed: int = 0) -> Task:
    """An MLP of two hidden layers: `iterations` of `batch` random samples an epoch, drawn from few: little data to send."""
    setup = SYNTHETIC.format(iterations=iterations, batch=batch, width=width, hidden=hidden, seed=seed)
    return Task(setup, ONE_PASS if epochs == 1 else PASSES.format(epochs=epochs))


def digits(*, epochs: int, batch: int, hidden: int, seed: int = 0) -> Task:
    """An MLP on scikit-learn's digits; after the cell `held_out` has the loss after each epoch, `at_s` the seconds until then."""
    return Task(DIGITS.format(batch=batch, hidden=hidden, seed=seed), PASSES_TESTED.format(epochs=epochs))
