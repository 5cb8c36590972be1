"""Training cells of many shapes: `SETUP` makes the names, each cell is an ordinary one. Each is run locally and leased."""

SETUP = """
import math, random, time, copy
from collections import Counter, defaultdict
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from torch.optim.lr_scheduler import StepLR, OneCycleLR, ReduceLROnPlateau

X = torch.randn(60, 8)
Y = (X.sum(1) > 0).long()
data = TensorDataset(X, Y)
loader = DataLoader(data, batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
alias = model
opt = torch.optim.Adam(model.parameters(), lr=0.01)
criterion = nn.CrossEntropyLoss()
losses, history = [], {"loss": [], "acc": []}

class AverageMeter:
    def __init__(self, name):
        self.name = name
        self.reset()
    def reset(self):
        self.val = self.avg = self.sum = self.count = 0
    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count
    def __str__(self):
        return f"{self.name} {self.val:.5f} ({self.avg:.5f})"

meter = AverageMeter("loss")

def evaluate(m):
    m.eval()
    with torch.no_grad():
        accuracy = (m(X).argmax(1) == Y).float().mean().item()
    m.train()
    return accuracy

def get_batch(size):
    ix = torch.randint(0, len(X), (size,))
    return X[ix], Y[ix]

def accuracy(out, y):
    return (out.argmax(1) == y).float().mean().item()

def train_step(x, y):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    return loss

def train_epoch(epoch, model, loader, optimizer):
    model.train()
    total, seen = 0.0, 0
    for batch_idx, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
        seen += len(x)
        if batch_idx % 3 == 0:
            print("Train Epoch: {} [{}/{}]\\tLoss: {:.6f}".format(epoch, batch_idx * len(x), len(loader.dataset), loss.item()))
    return total / seen
"""

STEP = """
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
"""

CELLS = {
    "plain": f"""
for epoch in range(2):
    for x, y in loader:{STEP}
        losses.append(loss.item())
    print(epoch, evaluate(model), losses[-1])
""",
    "enumerate, running mean": f"""
for epoch in range(2):
    running = 0.0
    for i, (x, y) in enumerate(loader):{STEP}
        running += loss.item()
        if i % 3 == 2:
            print(f"[{{epoch + 1}}, {{i + 1:5d}}] loss: {{running / 3:.5f}}")
            running = 0.0
""",
    "enumerate from 1, tuple in body": f"""
for epoch in range(2):
    for step, batch in enumerate(loader, 1):
        x, y = batch{STEP}
        print(step, x.shape[0], tuple(y.shape))
""",
    "tqdm": f"""
from tqdm import tqdm
for epoch in range(2):
    bar = tqdm(loader, disable=True)
    for x, y in bar:{STEP}
        bar.set_postfix(loss=loss.item())
        losses.append(float(loss.detach()))
""",
    "enumerate tqdm": f"""
from tqdm.auto import tqdm
for i, (x, y) in enumerate(tqdm(loader, disable=True)):{STEP}
    print(i, end=" ")
""".replace("        opt", "    opt").replace("        loss", "    loss"),
    "range with get_batch": """
for step in range(12):
    x, y = get_batch(8)
    loss = criterion(model(x), y)
    opt.zero_grad(set_to_none=True)
    loss.backward()
    opt.step()
    if step % 4 == 0 or step == 11:
        print(f"step {step}: {loss.item():.5f}")
""",
    "range with index slices": """
for i in range(0, len(X), 10):
    x, y = X[i:i + 10], Y[i:i + 10]
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(len(losses), sum(losses))
""",
    "full batch": """
for epoch in range(6):
    opt.zero_grad()
    loss = criterion(model(X), Y)
    loss.backward()
    opt.step()
    if epoch % 2: print(epoch, round(loss.item(), 6))
""",
    "in a function": """
for epoch in range(2):
    mean = train_epoch(epoch, model, loader, opt)
    history["loss"].append(mean)
    print(f"{mean:.6f}")
""",
    "function defined in the same cell": """
def fit(epochs):
    out = []
    for epoch in range(epochs):
        for x, y in loader:
            opt.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            opt.step()
            out.append(loss.item())
    return out
result = fit(2)
print(result[-1])
""",
    "body in a function": """
for epoch in range(2):
    for x, y in loader:
        loss = train_step(x, y)
        losses.append(loss.item())
print(losses)
""",
    "meters and helpers": """
for epoch in range(2):
    meter.reset()
    for x, y in loader:
        out = model(x)
        loss = criterion(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        meter.update(loss.item(), x.size(0))
        history["acc"].append(accuracy(out, y))
    print(meter, history["acc"][-1])
""",
    "correct and total": """
correct = total = 0
for x, y in loader:
    out = model(x)
    loss = criterion(out, y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    _, predicted = out.max(1)
    total += y.size(0)
    correct += predicted.eq(y).sum().item()
print(f"{100. * correct / total:.3f} {correct}/{total}")
""",
    "tensor sums": """
total_loss = 0
count = torch.zeros(1)
for x, y in loader:
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    total_loss += loss.detach()
    count += 1
print(total_loss / len(loader), count.item())
""",
    "lists of tensors": """
kept = []
for x, y in loader:
    opt.zero_grad()
    out = model(x)
    loss = criterion(out, y)
    loss.backward()
    opt.step()
    kept.append(loss.detach())
print(torch.stack(kept).mean().item(), len(kept))
""",
    "schedulers in and after the loop": """
sched = OneCycleLR(opt, max_lr=0.1, total_steps=2 * len(loader))
plateau = ReduceLROnPlateau(opt, patience=0)
for epoch in range(2):
    for x, y in loader:
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        sched.step()
        history["loss"].append(sched.get_last_lr()[0])
    plateau.step(loss.item())
    print([round(v, 6) for v in history["loss"]], opt.param_groups[0]["lr"])
""",
    "step lr after": f"""
sched = StepLR(opt, step_size=1, gamma=0.5)
for epoch in range(3):
    for x, y in loader:{STEP}
    sched.step()
    print(epoch, sched.get_last_lr(), loss.item())
""",
    "lr by hand": """
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        lr = 0.01 * (1 - i / len(loader))
        for group in opt.param_groups:
            group["lr"] = lr
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        print(i, opt.param_groups[0]["lr"])
""",
    "several models and optimizers": """
G = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
D = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 1))
og, od = torch.optim.Adam(G.parameters(), lr=1e-3), torch.optim.SGD(D.parameters(), lr=1e-2, momentum=0.9)
bce = nn.BCEWithLogitsLoss()
for epoch in range(2):
    for i, (real, _) in enumerate(loader):
        n = real.size(0)
        od.zero_grad()
        errD_real = bce(D(real), torch.ones(n, 1))
        errD_real.backward()
        noise = torch.randn(n, 4)
        fake = G(noise)
        errD_fake = bce(D(fake.detach()), torch.zeros(n, 1))
        errD_fake.backward()
        D_x = torch.sigmoid(D(real)).mean().item()
        od.step()
        og.zero_grad()
        errG = bce(D(fake), torch.ones(n, 1))
        errG.backward()
        og.step()
        if i % 4 == 0:
            print('[%d/%d] Loss_D: %.4f Loss_G: %.4f D(x): %.4f' % (epoch, i, (errD_real + errD_fake).item(), errG.item(), D_x))
""",
    "break on a count": f"""
for epoch in range(2):
    for i, (x, y) in enumerate(loader):{STEP}
        if i == 4:
            break
    print(i, loss.item())
""",
    "break on the running mean": f"""
for epoch in range(4):
    running = 0.0
    for i, (x, y) in enumerate(loader):{STEP}
        running = 0.9 * running + 0.1 * loss.item()
        if running < 0.05 and i > 2:
            print("stop", i, running)
            break
    else:
        print("whole epoch")
""",
    "continue": """
for i, (x, y) in enumerate(loader):
    if i % 3 == 1:
        print("skip", i)
        continue
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    losses.append((i, loss.item()))
print(losses)
""",
    "return from a function": """
def until(limit):
    for i, (x, y) in enumerate(loader):
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        if i >= limit:
            return i, loss.item()
    return None
print(until(3), until(99))
""",
    "early stop outside, best state": f"""
best, patience, best_state = math.inf, 0, None
for epoch in range(4):
    epoch_loss = 0.0
    for x, y in loader:{STEP}
        epoch_loss += loss.item() * x.size(0)
    epoch_loss /= len(data)
    if epoch_loss < best:
        best, best_state = epoch_loss, copy.deepcopy(model.state_dict())
    print(f"{{epoch}} {{epoch_loss:.5f}} {{best:.5f}}")
""",
    "best inside": """
best = math.inf
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    if loss.item() < best:
        best = loss.item()
        print("better", i, best)
""",
    "global step and counters": """
global_step = 0
seen = Counter()
for epoch in range(2):
    for x, y in loader:
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        global_step += 1
        seen.update(y.tolist())
        if global_step % 5 == 0:
            print(global_step, loss.item())
print(seen, global_step)
""",
    "random in the body": """
for x, y in loader:
    if random.random() < 0.5:
        x = x + 0.1 * torch.randn_like(x)
    scale = np.random.rand()
    opt.zero_grad()
    loss = criterion(model(x * scale), y)
    loss.backward()
    opt.step()
    losses.append(scale)
print(losses)
""",
    "gradient accumulation": """
opt.zero_grad()
for i, (x, y) in enumerate(loader):
    loss = criterion(model(x), y) / 2
    loss.backward()
    if (i + 1) % 2 == 0:
        opt.step()
        opt.zero_grad()
    print(i, loss.item())
""",
    "lbfgs": """
lb = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
for step in range(3):
    def closure():
        lb.zero_grad()
        loss = criterion(model(X), Y)
        loss.backward()
        return loss
    loss = lb.step(closure)
    print(step, loss.item())
""",
    "by hand, no optimizer": """
w = torch.randn(8, 2, requires_grad=True)
for x, y in loader:
    loss = F.cross_entropy(x @ w, y)
    loss.backward()
    with torch.no_grad():
        w -= 0.1 * w.grad
        w.grad.zero_()
    losses.append(loss.item())
print(losses[-1], w.sum().item())
""",
    "hidden state": """
rnn, head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 2)
params = torch.optim.SGD(list(rnn.parameters()) + list(head.parameters()), lr=0.1)
h = torch.zeros(1, 1, 6)
for step in range(6):
    out, h = rnn(X[step * 10:(step + 1) * 10].unsqueeze(0), h)
    h = h.detach()
    loss = criterion(head(out[0]), Y[step * 10:(step + 1) * 10])
    params.zero_grad()
    loss.backward()
    params.step()
    print(step, loss.item())
print(h.sum().item())
""",
    "comprehensions, conditions, formats": """
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    out = model(x)
    parts = [F.cross_entropy(out[k::2], y[k::2]) for k in range(2)]
    loss = sum(parts) / len(parts)
    loss.backward()
    norm = math.sqrt(sum(p.grad.norm().item() ** 2 for p in model.parameters()))
    big = "big" if norm > 0.8 else "small"
    opt.step()
    print(f"{i:>2} {loss:.5f} {norm:.4f} {big} {loss.item()!r}", *[round(p.item(), 4) for p in parts])
    if not torch.isfinite(loss) or loss > 100:
        raise ValueError("diverged")
""",
    "an open file, a lambda, time": """
import tempfile
log = tempfile.TemporaryFile("w+")
shrink = lambda v: v * 0.5
start = time.time()
for i, (x, y) in enumerate(loader):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    log.write(f"{i} {loss.item()}\\n")
    losses.append(shrink(loss.item()))
    took = time.time() - start
log.seek(0)
print(log.read(), losses[-1])
log.close()
""",
    "dict batches": """
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 24
    def __getitem__(self, i): return {"x": X[i], "y": Y[i], "id": i}
def collate(rows):
    return {"x": torch.stack([r["x"] for r in rows]), "y": torch.stack([r["y"] for r in rows]), "ids": [r["id"] for r in rows]}
for batch in DataLoader(Rows(), batch_size=6, shuffle=True, collate_fn=collate):
    batch = {k: v.float() if k == "x" else v for k, v in batch.items()}
    opt.zero_grad()
    loss = criterion(model(batch["x"]), batch["y"])
    loss.backward()
    opt.step()
    print(batch["ids"], loss.item())
""",
    "zip": """
other = DataLoader(data, batch_size=8)
for (x, y), (x2, _) in zip(loader, other):
    opt.zero_grad()
    loss = criterion(model(x), y) + 0.1 * model(x2).pow(2).mean()
    loss.backward()
    opt.step()
    print(loss.item())
""",
    "items of a list": """
for x, y in list(zip(X.split(12), Y.split(12))):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    print(len(x), loss.item())
""",
    "weighted sampler": """
sampler = WeightedRandomSampler(torch.rand(len(X)), 40)
for epoch in range(2):
    for x, y in DataLoader(data, batch_size=8, sampler=sampler, drop_last=True):
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
    print(loss.item())
""",
    "try around, autocast, ema": """
ema = copy.deepcopy(model)
try:
    for x, y in loader:
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        with torch.no_grad():
            for p, q in zip(ema.parameters(), model.parameters()):
                p.mul_(0.9).add_(q, alpha=0.1)
finally:
    print("done", loss.item(), sum(p.sum().item() for p in ema.parameters()))
""",
    "a trainer class": """
class Trainer:
    def __init__(self, model, opt):
        self.model, self.opt, self.step, self.log = model, opt, 0, []
    def _run_batch(self, x, y):
        self.opt.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.opt.step()
        self.step += 1
        self.log.append(loss.item())
        return loss
t = Trainer(model, opt)
for x, y in loader:
    loss = t._run_batch(x, y)
print(t.step, t.log[-1], loss.item())
""",
    "two loops": f"""
for x, y in loader:
    opt.zero_grad()
    F.mse_loss(model(x).sum(1), y.float()).backward()
    opt.step()
for epoch in range(2):
    for x, y in loader:{STEP}
print(loss.item())
""",
}
