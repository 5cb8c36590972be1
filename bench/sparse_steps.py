"""What fewer bits a change cost in loss, by the run's length: the real encoder between local steps, on scikit-learn's digits.

Four workers of speeds 1, 0.5, 0.5, 0.25, a net of 85,002 parameters, Adam 0.002, batch 32, about four merges an epoch, mean of three
seeds; each worker keeps its own optimizer and residual. Plain torch, no devices, nothing counted but changes on their way up.
Run: python bench/sparse_steps.py [epochs ...]
"""

from __future__ import annotations

import copy
import sys
from statistics import mean

import torch
import torch.nn.functional as F
from local_steps import SPEEDS, X, Y, accuracy, step
from torch import nn

from depin_nb.core.state import State
from depin_nb.training import compress
from depin_nb.training.compress import decode_change, encode_change

SEEDS = range(3)
ROUNDS = 3  # merges an epoch that the rounds are cut for
# bits, decay of the residual (2 bits only), outer momentum
CASES = ((32, 1.0, 0.3), (4, 1.0, 0.3), (2, 1.0, 0.0), (2, 0.95, 0.0), (2, 0.9, 0.0), (2, 0.8, 0.0), (2, 0.95, 0.3))


def state_of(model: nn.Module) -> State:
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    return State(tensors, dict.fromkeys(tensors, "param"), {})


def trained(seed: int, epochs: int, bits: int, momentum: float) -> tuple[float, float, int, int]:
    """`(loss, accuracy, bytes up, merges)` on the test images."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    shuffle, test = torch.Generator().manual_seed(seed), order[1437:]
    workers = [copy.deepcopy(model) for _ in SPEEDS]
    optimizers = [torch.optim.Adam(worker.parameters(), lr=0.002) for worker in workers]
    residuals: list[dict[str, torch.Tensor]] = [{} for _ in SPEEDS]
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    up = merges = 0
    for _ in range(epochs):
        batches = list(order[:1437][torch.randperm(1437, generator=shuffle)].split(32))
        inner_steps = max(1, len(batches) // (len(SPEEDS) * ROUNDS))
        while batches:
            shares = [0] * len(SPEEDS)
            for _ in range(min(len(batches), inner_steps * len(SPEEDS))):
                shares[min(range(len(SPEEDS)), key=lambda i: (shares[i] + 1) / SPEEDS[i])] += 1
            base = state_of(model)
            total = {name: torch.zeros_like(t) for name, t in base.tensors.items()}
            for i, share in enumerate(shares):
                workers[i].load_state_dict(model.state_dict())
                for index in batches[:share]:
                    step(workers[i], optimizers[i], index)
                batches = batches[share:]
                data, residuals[i] = encode_change(base, state_of(workers[i]), bits=bits, residual=residuals[i], include_inner=False)
                up += len(data)
                change = decode_change(data, base, max_bytes=1 << 30)
                for name, delta in (*change.deltas.items(), *((n, v - base.tensors[n]) for n, v in change.values.items())):
                    total[name] += delta * share / sum(shares)
            merges += 1
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.add_(velocity[name].mul_(momentum).add_(total[name]))
    with torch.no_grad():
        loss = F.cross_entropy(model(X[test]), Y[test]).item()
    return loss, accuracy(model, test), up, merges


def main() -> None:
    torch.set_num_threads(1)
    for epochs in [int(text) for text in sys.argv[1:]] or (8, 32):
        print(f"\n{epochs} epochs\nbits  decay  momentum    loss  accuracy  KB up  merges")
        for bits, decay, momentum in CASES:
            compress.RESIDUAL_DECAY = decay
            loss, points, up, merges = (mean(figures) for figures in zip(*(trained(s, epochs, bits, momentum) for s in SEEDS), strict=True))
            print(f"{bits:>4} {decay:>6} {momentum:>9} {loss:>7.4f} {points:>7.2f} % {up / 1e3:>6,.0f} {merges:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
