"""What the grammar's programs are made of: their setup, training steps, conditions, numbers. Simple ones stand first."""

SETUP = """
import copy, math, random
from collections import Counter, defaultdict, deque, namedtuple
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(18, 4)
Y = (X.sum(1) > 0).long()
loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.1), nn.Tanh(), nn.Linear(5, 2))
head = nn.Linear(2, 2)
ema = copy.deepcopy(model)
opt = torch.optim.Adam(model.parameters(), lr=0.02)
other = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
sched = torch.optim.lr_scheduler.StepLR(opt, 3, gamma=0.9)
Row = namedtuple("Row", "i loss")

class Meter:
    def __init__(self):
        self.reset()
    def reset(self):
        self.sum, self.n = 0.0, 0
    def update(self, value, n=1):
        self.sum += value * n
        self.n += n
    @property
    def avg(self):
        return self.sum / max(1, self.n)
    def __str__(self):
        return f"{self.avg:.4f} ({self.n})"

class Box:
    def __init__(self):
        self.count, self.last, self.seen, self.by = 0, 0.0, [], {"n": 0}
    def tick(self, by=1):
        self.count += by
        return self.count
    def note(self, value):
        self.last = value
        self.seen.append(value)
        return self
    def scaled(self, value):
        return value * 0.5 + self.count
    def step(self, x, y):
        opt.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        opt.step()
        self.count += 1
        return out, loss

def halved(value):
    return value * 0.5

def train_step(x, y):
    opt.zero_grad()
    out = model(x)
    loss = F.cross_entropy(out, y)
    loss.backward()
    opt.step()
    return out, loss

def correct(out, y):
    return (out.argmax(1) == y).sum().item()

def batch(n):
    at = torch.randint(0, len(X), (n,))
    return X[at], Y[at]
"""

NAMES = """total, best, seen, step, hits = 0.0, math.inf, 0, 0, 0
losses, names, kept, last = [], [], [], 0.0
alias = losses
stats = {"loss": [], "n": 0, "by": {"even": 0}}
counts, groups, recent = Counter(), defaultdict(list), deque(maxlen=3)
meter, box, rows = Meter(), Box(), []
total_t, h = torch.zeros(()), torch.zeros(4)
"""
#: what follows from the loop alone, never from a number that was computed
COUNTED = ("seen", "step", "hits", 'stats["n"]', 'stats["by"]["even"]', "box.count", "len(losses)", "len(names)", "len(kept)", "meter.n")

STEPS = (
    "opt.zero_grad()\nout = model(x)\nloss = F.cross_entropy(out, y)\nloss.backward()\nopt.step()",
    "out = model(x)\nloss = F.cross_entropy(out, y)\nopt.zero_grad(set_to_none=True)\nloss.backward()\nopt.step()",
    "out, loss = train_step(x, y)",
    "out, loss = box.step(x, y)",
    "opt.zero_grad()\nother.zero_grad()\nout = head(model(x))\nloss = F.cross_entropy(out, y)\nloss.backward()\nother.step()\nopt.step()",
    "opt.zero_grad()\nout = model(x)\nloss = F.cross_entropy(out, y)\nloss.backward()\n"
    "nn.utils.clip_grad_norm_(model.parameters(), 0.5)\nopt.step()",
    "opt.zero_grad()\nout = model(x)\nparts = [F.cross_entropy(out[k::2], y[k::2]) for k in range(2)]\n"
    "loss = sum(parts) / len(parts)\nloss.backward()\nopt.step()",
    "out = model(x)\nloss = F.cross_entropy(out, y) / 2\nloss.backward()\nif (i + 1) % 2 == 0:\n    opt.step()\n    opt.zero_grad()",
    "opt.zero_grad()\nout = model(x + 0.01 * h)\nloss = F.cross_entropy(out, y)\nloss.backward()\nopt.step()\n"
    "h = out.detach().mean() * h + 0.1",
)
STRUCTURAL = (
    "i % 2 == 0", "i == {k}", "i > {k}", "(i + 1) % 3 == 0", "step % 2", "0 < i < 3", "i in (1, {k})", "len(x) == 4", "x.size(0) < 4",
    "box.count > {k}", "len(losses) > {k}", "names", "not losses", "'n' in stats", "stats.get('none') is None", "model.training",
    "isinstance(loss, torch.Tensor)", "x.dim() == 2 and y.shape[0] == 4", "alias is losses", "hits < {k} or i == 0", "seen >= 8",
)  # fmt: skip
BY_VALUE = (
    "loss.item() > 0.7", "loss > 0.7", "total > 1.5", "random.random() < 0.5", "np.random.rand() < 0.5", "(v := loss.item()) > 0.7",
    "loss.item() < best", "meter.avg < 0.75", "losses and losses[-1] > 0.7", "0.6 < loss < 0.8", "correct(out, y) > 2",
    "y[0] == 1", "y.tolist()[0]", "(out.argmax(1) == y).all()", "not torch.isfinite(loss)", "torch.rand(()).item() < 0.5", "bool(y.any())",
)  # fmt: skip
COUNTS = (
    "1",
    "i",
    "len(x)",
    "x.size(0)",
    "y.shape[0]",
    "seen",
    "step",
    "hits",
    'stats["n"]',
    "box.count",
    "len(losses)",
    "y.numel()",
    "len(y.tolist())",
)
NUMBERS = (
    "loss.item()", "float(loss)", "loss.detach().item()", "total", "best", "last", "meter.avg",
    "box.last", "correct(out, y)", "losses[-1] if losses else 0.0",
    "out.max().item()", "int(y[0])", "y.tolist()[0]", "random.random()", "np.random.rand()",
    "torch.rand(()).item()", "x.mean().item()", "sum(losses)",
    "opt.param_groups[0]['lr']", "sched.get_last_lr()[0]",
    "(out.argmax(1) == y).float().mean().item()", "min(recent, default=0.0)", "float(np.float64(total))",
)  # fmt: skip
SHAPES = (
    "{a}", "({a} + {b})", "{a} * 0.5", "max({a}, {b})", "round({a}, 3)", "halved({a})",
    "abs({a} - {b})", "sum([{a}, {b}])", "box.scaled({a})", "math.sqrt(abs({a}))",
    "({a} if {c} else {b})", "(lambda v: v + 1)({a})", "[{a}, {b}][i % 2]", "dict(a={a})['a']",
    "float(format({a}, '.3f'))", "-{a}", "min([v for v in ({a}, {b})])",
)  # fmt: skip
