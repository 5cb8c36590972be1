"""Where the loop stands, where its work is done, `while` loops, fetches, and what a body's syntax may be."""

from catalogue import Cell

SETUP = """
import functools, itertools, math, random
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(48, 6)
Y = (X.sum(1) > 0).long()
data = TensorDataset(X, Y)
loader = DataLoader(data, batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 2))
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
criterion = nn.CrossEntropyLoss()
losses = []

class Trainer:
    def __init__(self, model, optimizer, loader):
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.global_step, self.history = 0, []
        self.__seen = 0
    def _run_batch(self, x, y):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()
    def _run_epoch(self, epoch):
        total = 0.0
        for x, y in self.loader:
            total += self._run_batch(x, y)
            self.global_step += 1
        print(f"epoch {epoch} | {self.global_step} steps | {total / len(self.loader):.5f}")
        self.history.append(total)
    def train(self, epochs):
        for epoch in range(epochs):
            self._run_epoch(epoch)
    def count(self, epochs):
        for _ in range(epochs):
            for x, y in self.loader:
                self.__note(len(x))
                self._run_batch(x, y)
        return self.__seen
    def __note(self, n):
        self.__seen += n
    def epochs(self, n):
        for epoch in range(n):
            mean = 0.0
            for x, y in self.loader:
                mean += self._run_batch(x, y) / len(self.loader)
            yield epoch, mean

class Logged(Trainer):
    def _run_batch(self, x, y):
        loss = super()._run_batch(x, y)
        self.history.append(loss)
        return loss
    def train(self, epochs):
        print("begin")
        super().train(epochs)

def make_fit(model, optimizer):
    calls = 0
    def fit(loader):
        nonlocal calls
        calls += 1
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return calls, loss.item()
    return fit
fit = make_fit(model, opt)

def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        print("calling", function.__name__)
        return function(*args, **kwargs)
    return wrapper

@logged
def train_one(model, loader):
    for x, y in loader:
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses[-1]

def outer_fit(n):
    def one_epoch():
        last = None
        for x, y in loader:
            opt.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            opt.step()
            last = loss.item()
        return last
    return [one_epoch() for _ in range(n)]

def train_step(model, x, y, scale=1.0):
    opt.zero_grad()
    loss = scale * criterion(model(x), y)
    loss.backward()
    opt.step()
    return loss

class Meter:
    def __init__(self): self.total, self.n = 0.0, 0
    def step(self, value): self.total += value; self.n += 1
    def run(self, value): self.step(value)
    @property
    def mean(self): return self.total / max(1, self.n)

class Strategy:
    def __init__(self, model, optimizer): self.model, self.optimizer = model, optimizer
    @staticmethod
    def loss(out, y): return F.cross_entropy(out, y)
    @classmethod
    def describe(cls): return cls.__name__
    def run(self, batch):
        x, y = batch
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

class Runner:
    def __init__(self, strategy): self.strategy, self.meter = strategy, Meter()
    def fit(self, loader, epochs):
        for _ in range(epochs):
            for batch in loader:
                loss = self.strategy.run(batch)
                self.meter.run(loss.item())
            print(self.strategy.describe(), f"{self.meter.mean:.5f}", self.meter.n)

class Step:
    def __init__(self, model): self.model, self.calls = model, 0
    def __call__(self, x, y):
        self.calls += 1
        return train_step(self.model, x, y)

step_count = 0
def global_fit(n):
    global step_count
    for epoch in range(n):
        for x, y in loader:
            loss = train_step(model, x, y)
            step_count += 1
    return loss.item()
"""

HELPERS = """
import torch, torch.nn.functional as F

seen = 0

def step(model, optimizer, x, y):
    global seen
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    seen += len(x)
    return loss

def train(model, loader, optimizer, epochs=1):
    history = []
    for epoch in range(epochs):
        for x, y in loader:
            history.append(step(model, optimizer, x, y).item())
    return history

class Engine:
    def __init__(self, model, optimizer):
        self.model, self.optimizer, self.steps = model, optimizer, 0

    def fit(self, loader, epochs):
        for epoch in range(epochs):
            for x, y in loader:
                loss = step(self.model, self.optimizer, x, y)
                self.steps += 1
            print(epoch, self.steps, f"{loss.item():.5f}")
"""

BODY = """
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
"""


def cell(code, **options):
    return Cell(code, SETUP, **options)


CELLS = {
    "where: trainer of an earlier cell": cell("t = Trainer(model, opt, loader)\nt.train(2)\nprint(t.global_step, t.history)"),
    "where: private names": cell("t = Trainer(model, opt, loader)\nprint(t.count(2))"),
    "where: generator method": cell("t = Trainer(model, opt, loader)\nfor epoch, mean in t.epochs(2):\n    print(epoch, f'{mean:.5f}')\n"),
    "where: super": cell("t = Logged(model, opt, loader)\nt.train(2)\nprint(t.global_step, len(t.history))"),
    "where: super in the cell": cell("""
class Mine(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.__kept = []
    def train(self, epochs):
        for epoch in range(epochs):
            for x, y in self.loader:
                loss = super()._run_batch(x, y)
                self.__kept.append(loss)
            print(epoch, len(self.__kept), self.__kept[-1])
t = Mine(model, opt, loader)
t.train(2)
"""),
    "where: closure of a factory": cell("print(fit(loader))\nprint(fit(loader))"),
    "where: factory called in the cell": cell("other = make_fit(model, opt)\nprint(other(loader), other(loader))"),
    "where: nested function": cell("print(outer_fit(2))"),
    "where: nested function of the cell": cell("""
def fit(n):
    count = 0
    def epoch():
        nonlocal count
        for x, y in loader:
            loss = train_step(model, x, y)
            count += 1
        return loss.item()
    values = [epoch() for _ in range(n)]
    return count, values
result = fit(2)
print(result)
"""),
    "where: decorated": cell("print(train_one(model, loader))\nprint(train_one(model, loader), len(losses))"),
    "where: global counter": cell("last = global_fit(2)\nprint(step_count, last)"),
    "where: module": cell(
        "import helpers\nhistory = helpers.train(model, loader, opt, epochs=2)\nprint(len(history), history[-1], helpers.seen)",
        files={"helpers": HELPERS},
    ),
    "where: class from a module": cell(
        "from engines import Engine\ne = Engine(model, opt)\ne.fit(loader, 2)\nprint(e.steps)", files={"engines": HELPERS}
    ),
    "where: work in a module": cell(
        """
import workers_own as w
for x, y in loader:
    loss = w.step(model, opt, x, y)
    losses.append(loss.item())
print(losses, w.seen)
""",
        files={"workers_own": HELPERS},
    ),
    "where: strategy of another object": cell("r = Runner(Strategy(model, opt))\nr.fit(loader, 2)\nprint(r.meter.n)"),
    "where: partial": cell("""
step = functools.partial(train_step, model, scale=0.5)
for x, y in loader:
    loss = step(x, y)
    losses.append(loss.item())
print(losses)
"""),
    "where: callable object": cell("""
step = Step(model)
for x, y in loader:
    loss = step(x, y)
    losses.append(loss.item())
print(losses, step.calls)
"""),
    "where: step as an argument": cell("""
def run(step, batches, meter):
    for x, y in batches:
        meter.run(step(model, x, y).item())
    return meter.mean
meter = Meter()
print(run(train_step, loader, meter), meter.n)
"""),
    "where: critic inside": cell("""
head = nn.Linear(6, 2)
opt_head = torch.optim.SGD(head.parameters(), lr=0.1)
for x, y in loader:
    for _ in range(2):
        opt.zero_grad()
        inner = criterion(model(x), y)
        inner.backward()
        opt.step()
    opt_head.zero_grad()
    loss = F.mse_loss(head(x), model(x).detach())
    loss.backward()
    opt_head.step()
    print(f"{inner.item():.5f} {loss.item():.5f}")
"""),
    "while: counter": cell("""
step = 0
while step < 8:
    i = step * 6
    x, y = X[i:i + 6], Y[i:i + 6]
    loss = train_step(model, x, y)
    step += 1
    if step % 3 == 0:
        print(step, loss.item())
print(step)
"""),
    "while: counter by strides, with else": cell("""
i, size = 0, 9
while i < len(X):
    loss = train_step(model, X[i:i + size], Y[i:i + size])
    losses.append(loss.item())
    i += size
else:
    print("all seen", i)
print(losses)
"""),
    "while: true and a break": cell("""
step = 0
while True:
    ix = torch.randint(0, len(X), (8,))
    x, y = X[ix], Y[ix]
    loss = train_step(model, x, y)
    if step % 2 == 0:
        print(step, loss.item())
    step += 1
    if step >= 7:
        break
print(step, loss.item())
"""),
    "while: on the loss": cell(
        """
tries, value = 0, 9.0
while value > 0.3 and tries < 9:
    loss = criterion(model(X), Y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    value = loss.item()
    tries += 1
    if tries == 3:
        continue
    print(tries, value)
else:
    print("ended by its test")
""",
        by_value=True,
    ),
    "while: in a function, left by break": cell(
        """
def until(limit):
    best = math.inf
    n = 0
    while best > limit:
        n += 1
        value = train_step(model, X, Y).item()
        best = min(best, value)
        if n == 6:
            break
    else:
        return "reached", n
    return "stopped", n, best
print(until(0.0), until(99.0), until(0.55))
""",
        solo="best",
        by_value=True,
    ),
    "while: next and renew": cell("""
it = iter(loader)
step = 0
while step < 10:
    try:
        x, y = next(it)
    except StopIteration:
        it = iter(loader)
        x, y = next(it)
    loss = train_step(model, x, y)
    step += 1
    losses.append(loss.item())
x, y = next(it)
print(losses, x.sum().item())
"""),
    "while: next, renew and count epochs": cell(
        """
it, epoch, step = iter(loader), 0, 0
while epoch < 2:
    try:
        x, y = next(it)
    except StopIteration:
        epoch += 1
        print("epoch", epoch, step)
        it = iter(loader)
        x, y = next(it)
    loss = train_step(model, x, y)
    step += 1
print(step, epoch, loss.item())
""",
        solo="`epoch`",
    ),
    "while: next until exhausted": cell("""
it = iter(loader)
n = 0
while True:
    n += 1
    try:
        batch = next(it)
    except StopIteration:
        print("exhausted")
        break
    x, y = batch
    loss = train_step(model, x, y)
print(n, loss.item())
"""),
    "while: next with a default": cell("""
it = iter(loader)
n = 0
while True:
    batch = next(it, None)
    if batch is None:
        break
    x, y = batch
    loss = train_step(model, x, y)
    n += 1
print(n, batch, loss.item())
"""),
    "while: walrus": cell("""
it = iter(loader)
n = 0
while (batch := next(it, None)) is not None:
    loss = train_step(model, *batch)
    n += 1
print(n, batch, loss.item())
"""),
    "while: try around the body": cell("""
it = iter(loader)
while True:
    try:
        x, y = next(it)
        loss = train_step(model, x, y)
        losses.append(loss.item())
    except StopIteration:
        break
print(losses)
"""),
    "for: next in the body": cell("""
it = itertools.cycle(loader)
for step in range(8):
    x, y = next(it)
    loss = train_step(model, x, y)
    print(step, loss.item())
"""),
    "for: two iterators": cell("""
unlabeled = DataLoader(TensorDataset(torch.randn(20, 6)), batch_size=5)
u = iter(unlabeled)
for i, (x, y) in enumerate(loader):
    try:
        (extra,) = next(u)
    except StopIteration:
        u = iter(unlabeled)
        (extra,) = next(u)
    opt.zero_grad()
    loss = criterion(model(x), y) + 0.1 * model(extra).pow(2).mean()
    loss.backward()
    opt.step()
    print(i, loss.item())
"""),
    "for: next that ends it": cell("""
it = iter(loader)
next(it)
try:
    for step in range(100):
        print("step", step)
        x, y = next(it)
        loss = train_step(model, x, y)
except StopIteration:
    print("no more", step)
"""),
    "for: next of a fresh iterator": cell("""
for step in range(4):
    x, y = next(iter(loader))
    loss = train_step(model, x, y)
    big = next((v for v in [loss.item(), 2.0] if v > 1.0), None)
    print(step, loss.item(), big, next(model.parameters()).dtype)
"""),
    "body: syntax": cell(
        """
mode = "ce"
for i, (x, y) in enumerate(loader):
    out = model(x)
    match mode:
        case "ce" | "nll" if i < 99:
            opt.zero_grad()
        case _:
            out = None
    if (n := len(x)) > 4 and (loss := criterion(out, y)) is not None and 0 < (k := n // 2) < 9:
        loss.backward()
    assert n == k * 2, "even"
    total = 0.0
    def add(value, scale=n):
        global losses
        losses.append(value / scale)
    add(loss.item())
    first, *rest = [round(v, 4) for v in out[0].tolist()]
    kinds = {int(v) for v in y}
    by = {int(v): i for v in y}
    width = 8
    print(f"{loss.item():{width}.4f} {first} {rest} {sorted(kinds)} {sorted(by)}")
    scratch = [loss]
    del scratch
    try:
        opt.step()
    finally:
        mode = "nll" if i % 2 else "ce"
""",
        solo="`mode`",
    ),
    "body: what is done with a batch": cell("""
for i, batch in enumerate(loader):
    if isinstance(batch, (list, tuple)):
        x, y = map(lambda t: t.to("cpu"), batch)
    else:
        x, y = batch["x"], batch["y"]
    if type(batch) is list and any(t.numel() == 0 for t in batch):
        continue
    parts = dict(zip(["x", "y"], batch))
    print(i, len(batch), sorted(parts), parts["x"].shape, torch.is_tensor(y), max(t.abs().max().item() for t in batch))
    x, y = tuple(t.clone() for t in parts.values())
    order = sorted(range(len(x)), key=lambda k: x[k, 0].item())
    out = model(x[order])
    opt.zero_grad()
    loss = F.cross_entropy(out, y[order])
    loss.backward()
    opt.step()
print(loss, len(list(filter(lambda p: p.requires_grad, model.parameters()))))
"""),
    "body: nonlocal in a helper": cell("""
def run():
    total = 0.0
    for x, y in loader:
        loss = train_step(model, x, y)
        seen = 0
        def note(value):
            nonlocal seen
            seen += value
        note(len(x))
        note(1)
        total += loss.item() * seen
    return total
print(run())
"""),
    "where: star import": cell(
        """
from starred import *
print(train(model, loader, opt)[-1])
""",
        files={"starred": HELPERS},
    ),
    "where: class from a package": cell(
        """
from mypack.engine import Engine
e = Engine(model, opt)
e.fit(loader, 1)
""",
        files={"mypack/__init__.py": "", "mypack/engine.py": HELPERS},
    ),
    "where: main guard": cell("""
def main():
    for epoch in range(2):
        for x, y in loader:
            loss = train_step(model, x, y)
        print(epoch, loss.item())
if __name__ == '__main__':
    main()
"""),
    "where: constructor": cell("""
class Go:
    def __init__(self, n):
        self.n = 0
        for x, y in loader:
            self.last = train_step(model, x, y).item()
            self.n += n
g = Go(2)
print(g.n, g.last)
"""),
    "where: dataclass with properties": cell("""
from dataclasses import dataclass, field
@dataclass
class Loop:
    model: nn.Module
    lr: float = 0.1
    log: list = field(default_factory=list)
    @property
    def last(self): return self.log[-1] if self.log else 0.0
    @property
    def weight(self): return self.model[0].weight.norm()
    def __post_init__(self): self.opt = torch.optim.SGD(self.model.parameters(), lr=self.lr)
    def __call__(self, loader):
        for i, (x, y) in enumerate(loader):
            self.opt.zero_grad()
            loss = F.cross_entropy(self.model(x), y) + 1e-3 * self.weight
            loss.backward()
            self.opt.step()
            self.log.append(loss.item())
            print(i, self.last)
l = Loop(model)
l(loader)
"""),
    "where: method of a module": cell("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 2)
        self.opt = torch.optim.SGD(self.parameters(), lr=0.1)
        self.steps = 0
    def forward(self, x): return self.body(x)
    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)
    def fit(self, loader, epochs):
        for epoch in range(epochs):
            for batch in loader:
                loss = self.training_step(batch)
                self.opt.zero_grad()
                loss.backward()
                self.opt.step()
                self.steps += 1
            print(epoch, loss.item())
net = Net()
net.fit(loader, 2)
print(net.steps)
"""),
    "while: in a method, from self.it": cell(
        """
class T:
    def __init__(self):
        self.step, self.max_steps, self.it = 0, 9, iter(loader)
    def batch(self):
        pass
    def fit(self):
        while self.step < self.max_steps:
            try:
                x, y = next(self.it)
            except StopIteration:
                self.it = iter(loader)
                x, y = next(self.it)
            loss = train_step(model, x, y)
            self.step += 1
            if self.step % 4 == 0: print(self.step, loss.item())
t = T()
t.fit()
x, y = next(t.it)
print(t.step, x.sum().item())
""",
        ignored=frozenset({"t"}),
    ),
    "for: itertools by other names": cell("""
from itertools import islice, cycle as rounds
for i, (x, y) in enumerate(islice(rounds(loader), 8)):
    loss = train_step(model, x, y)
    print(i, loss.item())
"""),
    "where: argument hides a global": cell("""
def fit(model):
    opt2 = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in loader:
        opt2.zero_grad()
        loss = criterion(model(x), y) + 0.1 * outer(x).mean()
        loss.backward()
        opt2.step()
    return loss.item()
def outer(x): return model(x).detach()
print(fit(nn.Linear(6, 2)))
"""),
    "where: callee's global read in the body": Cell(
        "gfit()\nprint(n_up)",
        SETUP
        + """
n_up = 0
def gone(x, y):
    global n_up
    n_up += 1
    return train_step(model, x, y)
def gfit():
    for x, y in loader:
        loss = gone(x, y)
        if n_up % 2 == 0:
            print(n_up, loss.item())
""",
    ),
    "where: class in a class": cell("""
class Outer:
    class Inner:
        def __init__(self): self.__n = 0
        def fit(self):
            for x, y in loader:
                train_step(model, x, y); self.__n += 1
            return self.__n
print(Outer.Inner().fit())
"""),
    "for: next and else": cell("""
it = iter(loader)
for step in range(3):
    x, y = next(it)
    loss = train_step(model, x, y)
else:
    print("else", step, sum(p.sum().item() for p in model.parameters()))
print(next(it)[0].sum().item())
"""),
    "while: left by return": cell("""
def go(n):
    i = 0
    while True:
        loss = train_step(model, X, Y)
        i += 1
        if i > n:
            return i, loss.item()
print(go(3))
"""),
    "body: walrus and several contexts": cell("""
for x, y in loader:
    if (value := train_step(model, x, y).item()) > 0.1 or (other := 2):
        losses.append(value)
    done = [z for v in losses if (z := v * 2) > 1]
    with torch.no_grad() as nothing, torch.autocast("cpu", enabled=False):
        d = {k: v for k, v in zip("ab", [1, 2])}
print(losses, z)
"""),
    "for: next with a default, renewed": cell("""
it = iter(loader)
for step in range(9):
    batch = next(it, None)
    if batch is None:
        it = iter(loader)
        batch = next(it)
    loss = train_step(model, *batch)
    print(step, loss.item())
"""),
    "while: a number as test": cell("""
n = 5
while n:
    loss = train_step(model, X, Y)
    n -= 1
print(n, loss.item())
"""),
    "where: step from a dict": cell("""
steps = {"a": lambda x, y: train_step(model, x, y), "b": train_step}
for x, y in loader:
    loss = steps["a"](x, y)
    loss = steps["b"](model, x, y)
    losses.append(loss.item())
print(losses)
"""),
    "where: step by getattr": cell("""
s = Strategy(model, opt)
for batch in loader:
    loss = getattr(s, "run")(batch)
print(loss.item())
"""),
}
