"""Cells by what the loop iterates: loaders, samplers, itertools, sequences, generators, live iterators. See catalogue.py."""

from catalogue import Cell

SETUP = """
import collections, dataclasses, itertools, random
from itertools import islice
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import (BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler,
                              SequentialSampler, Subset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler)

X = torch.randn(24, 4)
Y = (X.sum(1) > 0).long()
data = TensorDataset(X, Y)
net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.ReLU(), nn.Linear(6, 2))
opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
seen = []

def fit(x, y):
    opt.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    opt.step()
    return loss

class Rows(Dataset):
    def __init__(self, noise=0.0, fields=False):
        self.noise, self.fields = noise, fields
    def __len__(self):
        return len(X)
    def __getitem__(self, i):
        x = X[i] + self.noise * torch.randn(4) if self.noise else X[i]
        return {"x": x, "y": Y[i], "id": i} if self.fields else (x, Y[i])
"""

BODY = """
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        seen.append(loss.item())
"""


def epochs(loader, before="", target="x, y", body=BODY, after=""):
    """Two passes over a loader made before them."""
    return f"""{before}
loader = {loader}
for epoch in range(2):
    for {target} in loader:{body}
    print(epoch, seen[-1], len(seen)){after}
"""


def over(iterable, before="", target="x, y", first="", after=""):
    """One loop over an expression."""
    body = f"""    {first}
    opt.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    opt.step()
    seen.append(loss.item())
    print(loss.item())
"""
    return f"{before}\nfor {target} in {iterable}:\n{body}{after}\nprint(len(seen))\n"


LOADERS = {
    "shuffled and seeded": epochs("DataLoader(data, batch_size=5, shuffle=True, generator=g)", "g = torch.Generator().manual_seed(3)"),
    "a batch sampler": epochs("DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 7, drop_last=True))"),
    "weighted, with replacement": epochs("DataLoader(data, batch_size=6, sampler=WeightedRandomSampler(torch.rand(24), 20))"),
    "a random subset, dropping the last": epochs(
        "DataLoader(data, batch_size=4, sampler=SubsetRandomSampler(range(3, 21)), drop_last=True)"
    ),
    "drawn with replacement, left early": epochs(
        "DataLoader(data, batch_size=4, sampler=RandomSampler(data, replacement=True, num_samples=96, generator=g))",
        "g = torch.Generator().manual_seed(5)",
        body=BODY + "        if len(seen) % 7 == 3:\n            break\n",
        after="\nprint(torch.randint(0, 1000, (3,), generator=g))",
    ),
    "an own sampler of Python's random": epochs(
        "DataLoader(data, batch_size=6, sampler=Shuffled(24))",
        """
class Shuffled(Sampler):
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __iter__(self):
        order = list(range(self.n))
        random.shuffle(order)
        return iter(order)
""",
    ),
    "an own sampler that draws as it goes": epochs(
        "DataLoader(data, batch_size=8, sampler=Drawn())",
        """
class Drawn(Sampler):
    def __len__(self):
        return 24
    def __iter__(self):
        for _ in range(24):
            yield int(np.random.randint(24)) if np.random.rand() < 0.5 else int(torch.randint(24, (1,)))
""",
    ),
    "an own batch sampler": epochs(
        "DataLoader(data, batch_sampler=ByLength())",
        """
class ByLength:
    def __len__(self):
        return 4
    def __iter__(self):
        batches = [list(range(k, k + 6)) for k in range(0, 24, 6)]
        for k in torch.randperm(4).tolist():
            yield batches[k]
""",
    ),
    "collated by a lambda, dict batches": epochs(
        "DataLoader(Rows(fields=True), batch_size=6, shuffle=True, collate_fn=lambda rows: {k: [r[k] for r in rows] for k in rows[0]})",
        target="batch",
        body="\n        x, y = torch.stack(batch['x']), torch.stack(batch['y'])" + BODY + "        print(batch['id'])\n",
    ),
    "collated by a class, named tuples": epochs(
        "DataLoader(Rows(), batch_size=6, collate_fn=Collate(2.0))",
        """
Pair = collections.namedtuple("Pair", "x y")
class Collate:
    def __init__(self, scale):
        self.scale = scale
    def __call__(self, rows):
        return Pair(self.scale * torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))
""",
        target="batch",
        body="\n        x, y = batch.x, batch.y" + BODY,
    ),
    "collated into a dataclass": epochs(
        "DataLoader(Rows(), batch_size=6, collate_fn=collate)",
        """
@dataclasses.dataclass
class Both:
    x: torch.Tensor
    y: torch.Tensor
def collate(rows):
    return Both(*map(torch.stack, zip(*rows)))
""",
        target="batch",
        body="\n        x, y = batch.x, batch.y" + BODY,
    ),
    "no batching, own batches of indices": epochs(
        "DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 6, drop_last=False))"
    ),
    "random augmentation": epochs("DataLoader(Rows(noise=0.1), batch_size=6, shuffle=True)"),
    "processes of the loader's": epochs("DataLoader(data, batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)"),
    "random augmentation in processes": epochs("DataLoader(Rows(noise=0.1), batch_size=12, shuffle=True, num_workers=1, timeout=60)"),
    "an iterable dataset": epochs(
        "DataLoader(Stream(), batch_size=5)",
        """
class Stream(IterableDataset):
    def __iter__(self):
        for i in torch.randperm(24).tolist():
            yield X[i], Y[i]
""",
    ),
    "an iterable dataset in a process": epochs(
        "DataLoader(Stream(), batch_size=8, num_workers=1)",
        """
class Stream(IterableDataset):
    def __iter__(self):
        for i in range(24):
            yield X[i] + 0.1 * torch.randn(4), Y[i]
""",
    ),
    "a subclass of the loader": epochs(
        "Named(data, 'train', batch_size=8, shuffle=True)",
        """
class Named(DataLoader):
    def __init__(self, dataset, name, **options):
        super().__init__(dataset, **options)
        self.name = name
""",
    ),
    "subsets, joined": epochs(
        "DataLoader(ConcatDataset([Subset(data, range(0, 9)), Subset(data, range(12, 24))]), batch_size=5, shuffle=True)"
    ),
    "pinned": epochs("DataLoader(data, batch_size=8, shuffle=True, pin_memory=True)"),
}

FORMS = {
    "enumerate with a start": over("enumerate(DataLoader(data, batch_size=5), 10)", target="i, (x, y)", first="print(i, end=' ')"),
    "tqdm with a live postfix": """
from tqdm.auto import tqdm
for epoch in range(2):
    bar = tqdm(DataLoader(data, batch_size=8, shuffle=True), desc=f"epoch {epoch}")
    for x, y in bar:
        loss = fit(x, y)
        bar.set_postfix(loss=f"{loss.item():.4f}")
    print(bar.n, bar.postfix)
""",
    "one bar for two epochs": """
from tqdm import tqdm
bar = tqdm(DataLoader(data, batch_size=8, shuffle=True))
for epoch in range(2):
    for x, y in bar:
        loss = fit(x, y)
        seen.append(loss.item())
    print(bar.n, len(seen))
""",
    "trange, a bar updated by hand": """
from tqdm import tqdm, trange
total = tqdm(total=6)
for step in trange(6, desc="steps"):
    ix = torch.randint(0, 24, (8,))
    loss = fit(X[ix], Y[ix])
    total.update(1)
    total.set_description(f"loss {loss.item():.3f}")
total.close()
print(total.n, total.desc)
""",
    "zip of two shuffled loaders": """
a, b = DataLoader(data, batch_size=6, shuffle=True), DataLoader(data, batch_size=4, shuffle=True)
for (x, y), (x2, y2) in zip(a, b):
    loss = fit(torch.cat([x, x2]), torch.cat([y, y2]))
    print(len(x2), loss.item())
""",
    "zip with a cycled loader": """
few = DataLoader(Subset(data, range(8)), batch_size=4, shuffle=True)
for epoch in range(2):
    for (x, y), (x2, y2) in zip(DataLoader(data, batch_size=6, shuffle=True), itertools.cycle(few)):
        loss = fit(torch.cat([x, x2]), torch.cat([y, y2]))
        print(loss.item())
""",
    "islice of a loader": over("islice(DataLoader(data, batch_size=4, shuffle=True), 1, 5)"),
    "loaders in a chain": over(
        "itertools.chain(a, b)", "a = DataLoader(data, batch_size=9, shuffle=True)\nb = DataLoader(data, batch_size=8, shuffle=True)"
    ),
    "count until it is enough": over(
        "itertools.count(1)",
        target="step",
        first="ix = torch.randint(0, 24, (6,)); x, y = X[ix], Y[ix]",
        after="    if step == 5:\n        break\n",
    ),
    "repeat, product, starmap": """
for x, y in itertools.repeat((X, Y), 3):
    fit(x, y)
for rate, (x, y) in itertools.product([0.1, 0.01], list(zip(X.split(12), Y.split(12)))):
    opt.param_groups[0]["lr"] = rate
    loss = fit(x, y)
    print(rate, loss.item())
for x, y in itertools.starmap(lambda x, y: (2 * x, y), zip(X.split(12), Y.split(12))):
    loss = fit(x, y)
    print(loss.item())
""",
    "reversed and sorted lists": """
parts = list(zip(X.split(6), Y.split(6)))
for x, y in reversed(parts):
    seen.append(fit(x, y).item())
for i in sorted([3, 1, 2], reverse=True):
    x, y = parts[i]
    seen.append(fit(x, y).item())
print(seen)
""",
    "map over a loader": over("map(lambda batch: (batch[0] * 0.5, batch[1]), DataLoader(data, batch_size=6, shuffle=True))"),
    "a list of batches": over("batches", "batches = list(DataLoader(data, batch_size=6, shuffle=True))"),
    "chunks of a tensor": over(
        "torch.split(torch.cat([X, Y[:, None].float()], 1), 7)", target="part", first="x, y = part[:, :4], part[:, 4].long()"
    ),
    "rows of a tensor": over("X[:9]", target="row", first="x, y = row[None], Y[:1]"),
    "rows of an array": over("A", "A = X[:6].numpy()", target="row", first="x, y = torch.from_numpy(row)[None], Y[:1]; print(row[0])"),
    "index ranges": over("range(0, len(X), 5)", target="i", first="x, y = X[i:i + 5], Y[i:i + 5]"),
    "a shuffled order": over("torch.randperm(24).split(6)", target="ix", first="x, y = X[ix], Y[ix]"),
    "a dataset itself": over("Subset(data, range(7))", target="x, y", first="x, y = x[None], y[None]"),
    "items of a dict": over(
        "parts.items()", "parts = {f'part {k}': (X[k::3], Y[k::3]) for k in range(3)}", target="name, (x, y)", first="print(name)"
    ),
    "a generator that shuffles": """
def batches(size):
    order = torch.randperm(len(X))
    for i in range(0, len(X), size):
        ix = order[i:i + size]
        yield X[ix], Y[ix]
for epoch in range(2):
    for x, y in batches(6):
        loss = fit(x, y)
        seen.append(loss.item())
    print(seen[-1])
""",
    "a generator that draws each batch": """
def batches(count):
    for _ in range(count):
        ix = torch.randint(0, len(X), (6,))
        yield X[ix] + random.gauss(0, 0.1), Y[ix]
    torch.rand(1)
for x, y in batches(5):
    loss = fit(x, y)
    print(loss.item())
print(x.sum().item(), y.tolist())
""",
    "a generator expression": over("((X[i:i + 6], Y[i:i + 6]) for i in range(0, 24, 6))"),
    "an endless generator, left early": """
def cycle(loader):
    while True:
        for batch in loader:
            yield batch
stream = cycle(DataLoader(data, batch_size=10, shuffle=True))
for i, (x, y) in enumerate(stream):
    loss = fit(x, y)
    print(i, loss.item())
    if i == 6:
        break
x, y = next(stream)
print(x.sum().item())
""",
    "an own iterable": """
class Batches:
    def __init__(self, size):
        self.size = size
    def __len__(self):
        return -(-len(X) // self.size)
    def __iter__(self):
        self.order, self.at = torch.randperm(len(X)), 0
        return self
    def __next__(self):
        if self.at >= len(X):
            raise StopIteration
        ix = self.order[self.at:self.at + self.size]
        self.at += self.size
        return {"x": X[ix], "y": Y[ix]}
loader = Batches(7)
for epoch in range(2):
    for batch in loader:
        loss = fit(batch["x"], batch["y"])
        seen.append(loss.item())
    print(len(loader), seen[-1])
""",
    "a live iterator, in two parts": """
loader = DataLoader(data, batch_size=4, shuffle=True)
it = iter(loader)
for i, (x, y) in enumerate(it):
    loss = fit(x, y)
    if i == 1:
        break
x, y = next(it)
print(i, x.sum().item())
for x, y in it:
    loss = fit(x, y)
    seen.append(loss.item())
print(seen)
""",
    "several models, one after the other": """
nets = [nn.Linear(4, 2), nn.Linear(4, 2)]
opts = [torch.optim.SGD(n.parameters(), lr=0.1) for n in nets]
for n, o in zip(nets, opts):
    o.zero_grad()
    loss = F.cross_entropy(n(X), Y)
    loss.backward()
    o.step()
    print(loss.item())
""",
}

SOLO = {
    "several models, one after the other": "models or optimizers",
    "drawn with replacement, left early": "`seen`",
}
IGNORED = {"collated into a dataclass": {"batch"}}  # of a type of the user's: it stays on the worker
CELLS = {
    name: Cell(code, SETUP, SOLO.get(name, ""), ignored=frozenset(IGNORED.get(name, ()))) for name, code in {**LOADERS, **FORMS}.items()
}
