"""What bench/bytes_loss.py trains: an MLP and a CNN on scikit-learn's digits, a char transformer on the text of `pydoc_data.topics`.

Rates are those with which per-step sync ended best of a few, on short runs: MLP 0.004 of 0.002 to 0.016, CNN 0.05 of 0.025 to 0.2;
for the transformer 0.002 of 0.001 to 0.003, in one process with a worker's batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]
Built = tuple[nn.Module, Loss, Callable[[nn.Module], float], int]


@dataclass(frozen=True)
class Task:
    """`build(seed)`: a model, the loss of a batch given its indices, the loss on held-out samples, the number of training samples.

    `steps`: of a worker in a short run. `batch`: samples a step of a worker. `decay`: whether the rate falls on a line to zero.
    """

    build: Callable[[int], Built]
    optimizer: Callable[[Any, float], torch.optim.Optimizer]
    steps: int
    batch: int
    decay: bool = False


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Chars(nn.Module):
    def __init__(self, symbols: int, width: int = 96, layers: int = 2, heads: int = 4, context: int = 32) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)
        nn.init.normal_(self.symbol.weight, std=0.1)
        nn.init.normal_(self.place.weight, std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.symbol(x) + self.place.weight[: x.shape[1]])))


def chars(seed: int, context: int = 32) -> Built:
    from pydoc_data.topics import topics

    text = "\n".join(topics[k] for k in sorted(topics))
    symbols = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([symbols[c] for c in text])
    pieces = ids[: len(ids) // (context + 1) * (context + 1)].view(-1, context + 1)
    held = torch.arange(len(pieces)) % 10 == 9
    train, test = pieces[~held], pieces[held][::3]
    torch.manual_seed(seed)

    def loss(model: nn.Module, index: torch.Tensor) -> torch.Tensor:
        x = train[index]
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    def tested(model: nn.Module) -> float:
        with torch.no_grad():
            return mean(F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).item() for x in test.chunk(8))

    return Chars(len(symbols)), loss, tested, len(train)


def digits(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[int], Built]:
    def build(seed: int) -> Built:
        from sklearn.datasets import load_digits

        data = load_digits()
        x, y = torch.tensor(data.data / 16, dtype=torch.float32).view(-1, *shape), torch.tensor(data.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        train, test = order[:1437], order[1437:]
        torch.manual_seed(seed)

        def loss(model: nn.Module, index: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(model(x[train[index]]), y[train[index]])

        def tested(model: nn.Module) -> float:
            with torch.no_grad():
                return F.cross_entropy(model(x[test]), y[test]).item()

        return make(), loss, tested, len(train)

    return build


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    convs = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def adam(parameters: Any, scale: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.004 * scale, fused=True)


def adamw(parameters: Any, scale: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.002 * scale, fused=True)


def sgd(parameters: Any, scale: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05 * scale, momentum=0.9)


TASKS = {
    "mlp": Task(digits(mlp, (64,)), adam, 180, 8),
    "cnn": Task(digits(cnn, (1, 8, 8)), sgd, 180, 8),
    "chars": Task(chars, adamw, 200, 8),
    "chars-decay": Task(chars, adamw, 200, 8, True),
}
