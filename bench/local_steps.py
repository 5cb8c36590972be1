"""How local steps with merges compare with one process at equal samples, on scikit-learn's digits: accuracy in points, mean of five seeds.

Four workers of speeds 1, 0.5, 0.5, 0.25 take time-balanced shares; each keeps its own optimizer; changes merge by iterations, with an outer
momentum. Plain torch, no devices and no compression. The defaults of `training/strategy.py` come from this table.
Run: python bench/local_steps.py
"""

from __future__ import annotations

import copy
from statistics import mean

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

SPEEDS = (1, 0.5, 0.5, 0.25)
TASKS = {  # hidden units, batch size, epochs, optimizer
    "128 units, Adam 0.004, batch 32, 8 epochs": (128, 32, 8, lambda p: torch.optim.Adam(p, lr=0.004)),
    "the same, 16 epochs": (128, 32, 16, lambda p: torch.optim.Adam(p, lr=0.004)),
    "small and short: Adam 0.003, batch 16, 6 epochs": (32, 16, 6, lambda p: torch.optim.Adam(p, lr=0.003)),
    "SGD 0.1, momentum 0.9, batch 32, 8 epochs": (64, 32, 8, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
}
digits = load_digits()
X, Y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def start(task: str, seed: int):
    hidden, batch, epochs, optimizer = TASKS[task]
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    shuffle = torch.Generator().manual_seed(seed)
    passes = [list(order[:1437][torch.randperm(1437, generator=shuffle)].split(batch)) for _ in range(epochs)]
    return model, optimizer, passes, order[1437:]


def step(model, optimizer, index) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(X[index]), Y[index]).backward()
    optimizer.step()


def accuracy(model, index) -> float:
    with torch.no_grad():
        return 100 * (model(X[index]).argmax(1) == Y[index]).float().mean().item()


def one_process(task: str, seed: int) -> float:
    model, make, passes, test = start(task, seed)
    optimizer = make(model.parameters())
    for batches in passes:
        for index in batches:
            step(model, optimizer, index)
    return accuracy(model, test)


def merged(task: str, seed: int, rounds: int, momentum: float) -> float:
    model, make, passes, test = start(task, seed)
    workers = [copy.deepcopy(model) for _ in SPEEDS]
    optimizers = [make(worker.parameters()) for worker in workers]
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for batches in passes:
        inner_steps = max(1, len(batches) // (len(SPEEDS) * rounds))
        while batches:
            shares = [0] * len(SPEEDS)
            for _ in range(min(len(batches), inner_steps * len(SPEEDS))):
                shares[min(range(len(SPEEDS)), key=lambda i: (shares[i] + 1) / SPEEDS[i])] += 1
            changes = [torch.zeros_like(p) for p in model.parameters()]
            for worker, optimizer, share in zip(workers, optimizers, shares, strict=True):
                worker.load_state_dict(model.state_dict())
                for index in batches[:share]:
                    step(worker, optimizer, index)
                batches = batches[share:]
                with torch.no_grad():
                    for change, new, old in zip(changes, worker.parameters(), model.parameters(), strict=True):
                        change.add_((new - old) * share / sum(shares))
            with torch.no_grad():
                for parameter, change, v in zip(model.parameters(), changes, velocity, strict=True):
                    parameter.add_(v.mul_(momentum).add_(change))
    return accuracy(model, test)


def main() -> None:
    torch.set_num_threads(1)
    seeds, momenta = range(5), (0.0, 0.3, 0.5)
    for task in TASKS:
        base = mean(one_process(task, seed) for seed in seeds)
        print(f"\n{task}: one process {base:.2f} %")
        print("merges an epoch  " + "".join(f"momentum {m:<8}" for m in momenta))
        for rounds in (5, 3, 2, 1):
            gaps = [mean(merged(task, seed, rounds, m) for seed in seeds) - base for m in momenta]
            print(f"{rounds:<17}" + "".join(f"{gap:+.2f}            " for gap in gaps), flush=True)


if __name__ == "__main__":
    main()
