"""What loops train with: models, optimizers, schedulers, scalers, hand-made updates, and how people's models differ from ours."""

from catalogue import Cell

DATA = """
import copy, math
from collections import OrderedDict
from dataclasses import dataclass
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
X = torch.randn(48, 6)
Y = (X.sum(1) > 0).long()
loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
losses = []
"""
MODEL = f"""{DATA}
model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
criterion = nn.CrossEntropyLoss()
"""
WORDS = f"""{DATA}
tokens = torch.randint(0, 40, (60, 4))
tags = torch.randint(0, 3, (60,))
batches = DataLoader(TensorDataset(tokens, tags), batch_size=10, shuffle=True)
"""

CELLS = {
    "gan with two optimizers and schedulers": Cell(
        """
for epoch in range(2):
    for i, (real, _) in enumerate(loader):
        n = real.size(0)
        z = torch.randn(n, 3)
        fake = netG(z)
        optD.zero_grad()
        loss_d = F.binary_cross_entropy_with_logits(netD(real), torch.ones(n, 1)) + F.binary_cross_entropy_with_logits(
            netD(fake.detach()), torch.zeros(n, 1))
        loss_d.backward()
        optD.step()
        for p in netD.parameters():
            p.requires_grad_(False)
        optG.zero_grad()
        loss_g = F.binary_cross_entropy_with_logits(netD(fake), torch.ones(n, 1))
        loss_g.backward()
        optG.step()
        for p in netD.parameters():
            p.requires_grad_(True)
        G_losses.append(loss_g.item())
        D_losses.append(loss_d.item())
    schedG.step()
    print(f"{epoch} {G_losses[-1]:.5f} {D_losses[-1]:.5f} {schedG.get_last_lr()}")
""",
        f"""{DATA}
netG = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
netD = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
optG = torch.optim.Adam(netG.parameters(), lr=2e-3, betas=(0.5, 0.999))
optD = torch.optim.RMSprop(netD.parameters(), lr=1e-3)
schedG = torch.optim.lr_scheduler.ExponentialLR(optG, 0.9)
G_losses, D_losses = [], []
""",
        ignored=frozenset({"p"}),
    ),
    "actor and critic": Cell(
        """
for episode in range(8):
    state = torch.randn(5, 4)
    dist = torch.distributions.Categorical(logits=policy(state))
    action = dist.sample()
    reward = (action == (state[:, 0] > 0).long()).float()
    baseline = value(state).squeeze(-1)
    advantage = reward - baseline.detach()
    actor_loss = -(dist.log_prob(action) * advantage).mean() - 0.01 * dist.entropy().mean()
    critic_loss = F.mse_loss(baseline, reward)
    actor_opt.zero_grad(); critic_opt.zero_grad()
    (actor_loss + 0.5 * critic_loss).backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    actor_opt.step(); critic_opt.step()
    returns.append(reward.sum().item())
    if episode % 3 == 0:
        print(f"episode {episode:3d} reward {returns[-1]:.1f} critic {critic_loss.item():.4f}")
""",
        f"""{DATA}
policy, value = nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 1))
actor_opt, critic_opt = torch.optim.Adam(policy.parameters(), 0.01), torch.optim.AdamW(value.parameters(), 0.02)
returns = []
""",
    ),
    "lbfgs on batches": Cell(
        """
for i, (x, y) in enumerate(loader):
    def closure():
        lbfgs.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        return loss
    loss = lbfgs.step(closure)
    losses.append(loss.item())
print(losses)
""",
        f"{MODEL}\nlbfgs = torch.optim.LBFGS(model.parameters(), lr=0.2, max_iter=4, history_size=3, line_search_fn='strong_wolfe')",
    ),
    "sparse embedding with SparseAdam": Cell(
        """
for epoch in range(2):
    for words, tag in batches:
        sparse_opt.zero_grad()
        dense_opt.zero_grad()
        logits = head(bag(words))
        loss = F.cross_entropy(logits, tag)
        loss.backward()
        sparse_opt.step()
        dense_opt.step()
        losses.append(loss.item())
    print(epoch, sum(losses) / len(losses))
""",
        f"""{WORDS}
bag = nn.EmbeddingBag(40, 5, mode="mean", sparse=True)
head = nn.Linear(5, 3)
sparse_opt = torch.optim.SparseAdam(list(bag.parameters()), lr=0.05)
dense_opt = torch.optim.Adam(head.parameters(), lr=0.01)
""",
    ),
    "sparse embedding with plain SGD": Cell(
        """
for words, tag in batches:
    opt.zero_grad()
    loss = F.cross_entropy(net(words).mean(1), tag)
    loss.backward()
    opt.step()
    losses.append(round(loss.item(), 6))
print(losses)
""",
        f"""{WORDS}
net = nn.Sequential(nn.Embedding(40, 5, sparse=True), nn.Linear(5, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.5)
""",
    ),
    "accumulation with a scaler": Cell(
        """
optimizer.zero_grad(set_to_none=True)
for i, (x, y) in enumerate(loader):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(model(x), y) / 2
    scaler.scale(loss).backward()
    if (i + 1) % 2 == 0:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item() * 2)
print(scaler.get_scale(), losses)
""",
        f'{MODEL}\nscaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)',
        solo="gradients",
    ),
    "autocast and a cpu scaler": Cell(
        """
for epoch in range(2):
    for x, y in loader:
        optimizer.zero_grad()
        with torch.amp.autocast(device_type="cpu", dtype=torch.bfloat16):
            out = model(x)
            loss = criterion(out, y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    print(epoch, loss.item(), scaler.get_scale())
""",
        f'{MODEL}\nscaler = torch.amp.GradScaler("cpu", growth_interval=3)',
    ),
    "a disabled cuda scaler": Cell(
        """
for x, y in loader:
    x, y = x.to(device, non_blocking=True), y.to(device)
    with torch.autocast(device_type=device.type, enabled=use_amp):
        loss = criterion(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())
print(losses[-1], scaler.get_scale())
""",
        f"""{MODEL}
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
use_amp = device.type == "cuda"
scaler = torch.amp.GradScaler("cuda", enabled=use_amp)
model.to(device)
""",
    ),
    "one-cycle and its momentum": Cell(
        """
for epoch in range(2):
    for step, (x, y) in enumerate(loader):
        loss = criterion(model(x), y)
        loss.backward()
        sgd.step()
        cycle.step()
        sgd.zero_grad()
        lrs.append((sgd.param_groups[0]["lr"], sgd.param_groups[0]["momentum"]))
print([f"{lr:.4f}/{m:.3f}" for lr, m in lrs], loss.item())
""",
        f"""{MODEL}
sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.2, epochs=2, steps_per_epoch=len(loader))
lrs = []
""",
    ),
    "warm restarts by the fraction of the epoch": Cell(
        """
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        restarts.step(epoch + i / len(loader))
    print(epoch, restarts.get_last_lr()[0], loss.item())
""",
        f"{MODEL}\nrestarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2)",
        solo="scheduler",
    ),
    "warm-up by a lambda, then cosine": Cell(
        """
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        warmup.step()
    both.step()
    print(epoch, [g["lr"] for g in optimizer.param_groups], [g["lr"] for g in other.param_groups])
""",
        f"""{MODEL}
warm = 4
def factor(step):
    return min(1.0, (step + 1) / warm)
warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: factor(step) * 0.99 ** step)
other = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
both = torch.optim.lr_scheduler.SequentialLR(other, [
    torch.optim.lr_scheduler.LinearLR(other, 0.1, total_iters=2), torch.optim.lr_scheduler.CosineAnnealingLR(other, 4)], milestones=[2])
""",
    ),
    "plateau inside the loop": Cell(
        """
for i, (x, y) in enumerate(loader):
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    plateau.step(loss)
    print(i, optimizer.param_groups[0]["lr"], round(loss.item(), 5))
""",
        f"{MODEL}\nplateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.05)",
        solo="scheduler",
    ),
    "learning rate from a schedule of one's own": Cell(
        """
for it in range(10):
    lr = get_lr(it)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    ix = torch.randint(len(X), (8,))
    logits = model(X[ix])
    loss = F.cross_entropy(logits, Y[ix])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if it % 4 == 0:
        print(f"iter {it}: loss {loss.item():.4f}, lr {lr:.2e}, norm {norm:.3f}")
""",
        f"""{MODEL}
def get_lr(it, warmup=3, top=0.02, last=9):
    if it < warmup:
        return top * (it + 1) / warmup
    ratio = (it - warmup) / (last - warmup)
    return 0.1 * top + 0.45 * top * (1.0 + math.cos(math.pi * ratio))
decay = [p for p in model.parameters() if p.dim() >= 2]
rest = [p for p in model.parameters() if p.dim() < 2]
optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=0.1), dict(params=rest, weight_decay=0.0, scale=2.0)], lr=0.01)
""",
        ignored=frozenset({"group"}),
    ),
    "weights by hand in a list": Cell(
        """
for epoch in range(2):
    for x, y in loader:
        hidden = torch.tanh(x @ params["w1"] + params["b1"])
        loss = F.cross_entropy(hidden @ layers[0] + layers[1], y)
        loss.backward()
        with torch.no_grad():
            for p in [*params.values(), *layers]:
                p -= 0.1 * p.grad
                p.grad = None
        losses.append(loss.item())
    print(epoch, losses[-1])
""",
        f"""{DATA}
params = dict(w1=(0.4 * torch.randn(6, 5)).requires_grad_(), b1=torch.zeros(5, requires_grad=True))
layers = [torch.randn(5, 2, requires_grad=True), torch.zeros(2, requires_grad=True)]
""",
    ),
    "weights by hand, zeroed in place": Cell(
        """
for x, y in loader:
    loss = ((x @ w + b).squeeze(1) - y.float()).pow(2).mean()
    loss.backward()
    with torch.no_grad():
        w -= lr * w.grad
        b -= lr * b.grad
        w.grad.zero_()
        b.grad.zero_()
print(loss.item(), w.flatten().tolist(), b.item())
""",
        f"{DATA}\nw, b, lr = torch.randn(6, 1, requires_grad=True), torch.zeros(1, requires_grad=True), 0.05",
    ),
    "functional gradients": Cell(
        """
for i, (x, y) in enumerate(loader):
    grads, loss = grad_fn(weights, x, y)
    with torch.no_grad():
        for name in weights:
            weights[name] -= 0.1 * grads[name]
    losses.append(loss.item())
print(losses)
""",
        f"""{MODEL}
from torch.func import functional_call, grad_and_value
weights = {{k: v.detach().clone() for k, v in model.named_parameters()}}
def compute(weights, x, y):
    return F.cross_entropy(functional_call(model, weights, (x,)), y)
grad_fn = grad_and_value(compute)
""",
    ),
    "per-sample gradients by vmap": Cell(
        """
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    with torch.no_grad():
        each = vmap(grad(one), in_dims=(None, 0, 0))(dict(model.named_parameters()), x, y)
        norms.append(each["0.weight"].flatten(1).norm(dim=1).mean().item())
    optimizer.step()
print(norms)
""",
        f"""{MODEL}
from torch.func import functional_call, grad, vmap
def one(weights, x, y):
    return F.cross_entropy(functional_call(model, weights, (x.unsqueeze(0),)), y.unsqueeze(0))
norms = []
""",
    ),
    "autograd.grad and a penalty": Cell(
        """
for x, y in loader:
    x.requires_grad_(True)
    out = model(x)
    g = torch.autograd.grad(out[:, 1].sum(), x, create_graph=True)[0]
    loss = criterion(out, y) + 0.1 * ((g.norm(dim=1) - 1) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses)
""",
        MODEL,
    ),
    "averaged model, batch norm updated after": Cell(
        """
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        if epoch > 0:
            swa.update_parameters(model)
    if epoch > 0:
        swa_lr.step()
torch.optim.swa_utils.update_bn(loader, swa)
swa.eval()
print(loss.item(), swa(X).sum().item(), int(swa.n_averaged), optimizer.param_groups[0]["lr"])
""",
        f"""{DATA}
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
criterion = nn.CrossEntropyLoss()
swa = torch.optim.swa_utils.AveragedModel(model)
swa_lr = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.02, anneal_epochs=1)
""",
    ),
    "teacher by moving average": Cell(
        """
for x, y in loader:
    with torch.no_grad():
        soft = F.softmax(teacher(x) / 2, dim=1)
    out = student(x)
    loss = F.cross_entropy(out, y) + F.kl_div(F.log_softmax(out / 2, 1), soft, reduction="batchmean")
    opt.zero_grad()
    loss.backward()
    opt.step()
    update_ema(teacher, student, 0.95)
    losses.append(loss.item())
print(losses[-1], sum(p.abs().sum() for p in teacher.parameters()).item())
""",
        f"""{DATA}
student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
teacher = copy.deepcopy(student).eval().requires_grad_(False)
opt = torch.optim.Adamax(student.parameters(), lr=0.02)
@torch.no_grad()
def update_ema(target, source, decay):
    for t, s in zip(target.parameters(), source.parameters()):
        t.lerp_(s, 1 - decay)
""",
    ),
    "tied weights": Cell(
        """
for ids, _ in batches:
    logits = lm(ids[:, :-1])
    loss = F.cross_entropy(logits.reshape(-1, 40), ids[:, 1:].reshape(-1))
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(losses, lm.out.weight is lm.emb.weight)
""",
        f"""{WORDS}
class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(40, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 40, bias=False)
        self.out.weight = self.emb.weight
    def forward(self, ids):
        return self.out(self.rnn(self.emb(ids))[0])
lm = LM()
opt = torch.optim.NAdam(lm.parameters(), lr=0.02)
""",
    ),
    "frozen parts, thawed later": Cell(
        """
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        if epoch == 1 and i == 2:
            for p in model[0].parameters():
                p.requires_grad = True
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(epoch, sum(p.numel() for p in model.parameters() if p.requires_grad), losses[-1])
""",
        f"{MODEL}\nfor p in model[0].parameters():\n    p.requires_grad = False",
        ignored=frozenset({"p"}),
    ),
    "a hook of one's own": Cell(
        """
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(model(x), y) + 1e-3 * activations["hidden"].pow(2).mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
handle.remove()
print(losses, len(model[1]._forward_hooks))
""",
        f"""{MODEL}
activations = {{}}
def save(name):
    def hook(module, inputs, output):
        activations[name] = output
    return hook
handle = model[1].register_forward_hook(save("hidden"))
""",
        solo="activations",
        ignored=frozenset({"handle"}),
    ),
    "gradients clamped by hooks": Cell(
        """
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses)
""",
        f"{MODEL}\nfor p in model.parameters():\n    p.register_hook(lambda g: g.clamp(-0.01, 0.01))",
        ignored=frozenset({"p"}),
    ),
    "compiled model": Cell(
        """
for epoch in range(2):
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(fast(x), y)
        loss.backward()
        optimizer.step()
    print(epoch, loss.item())
print(fast._orig_mod is model)
""",
        f'{MODEL}\nfast = torch.compile(model, backend="eager")',
    ),
    "compiled function and a model compiled in place": Cell(
        """
for x, y in loader:
    optimizer.zero_grad()
    loss = step_loss(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses)
""",
        f"""{MODEL}
from fused import step_loss
model.compile(backend="eager")
""",
        files={
            "fused.py": """
import torch
@torch.compile(backend="eager")
def step_loss(out, y):
    return torch.nn.functional.cross_entropy(out, y, label_smoothing=0.1)
"""
        },
        ignored=frozenset({"step_loss"}),
    ),
    "a model with an output object": Cell(
        """
for epoch in range(2):
    for step, batch in enumerate(batches):
        inputs = dict(input_ids=batch[0], labels=batch[1])
        outputs = model(**inputs)
        loss = outputs.loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        predictions = outputs.logits.argmax(dim=-1)
        correct += (predictions == batch[1]).sum().item()
    print(f"epoch {epoch} loss {loss.item():.5f} correct {correct} hidden {model.config.hidden}")
""",
        f"""{WORDS}
@dataclass
class TaggerConfig:
    vocab: int = 40
    hidden: int = 6
    labels: int = 3
class ModelOutput(OrderedDict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
class Tagger(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.hidden)
        self.classifier = nn.Linear(config.hidden, config.labels)
    def forward(self, input_ids, labels=None):
        logits = self.classifier(self.embed(input_ids).mean(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ModelOutput(loss=loss, logits=logits)
model = Tagger(TaggerConfig())
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / 12))
correct = 0
""",
        ignored=frozenset({"outputs"}),
    ),
    "data parallel": Cell(
        """
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(parallel(x), y).mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses, parallel.module is model)
""",
        f"{MODEL}\nparallel = nn.DataParallel(model)",
    ),
    "weight norm and spectral norm": Cell(
        """
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(net(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses, net[0].weight.norm().item())
""",
        f"""{DATA}
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
net = nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), spectral_norm(nn.Linear(8, 2)))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
criterion = nn.CrossEntropyLoss()
""",
    ),
    "a model with its own pickling": Cell(
        """
for x, y in loader:
    opt.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(losses, net.log is not None)
""",
        f"""{DATA}
import threading
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)
        self.log = threading.Lock()
    def forward(self, x):
        return self.fc(x)
    def __getstate__(self):
        return {{k: v for k, v in self.__dict__.items() if k != "log"}}
    def __setstate__(self, state):
        self.__dict__.update(state, log=None)
net = Net()
opt = torch.optim.Adagrad(net.parameters(), lr=0.1)
""",
        ignored=frozenset({"net"}),
    ),
    "custom autograd function and optimizer": Cell(
        """
for x, y in loader:
    opt.zero_grad()
    loss = F.cross_entropy(net[1](Clip.apply(net[0](x))), y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(losses)
""",
        f"""{DATA}
class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 2)
class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, beta=0.9):
        super().__init__(params, dict(lr=lr, beta=beta))
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"], state["steps"] = torch.zeros_like(p), 0
                state["steps"] += 1
                state["m"].mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                p.add_(state["m"].sign(), alpha=-group["lr"])
net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
opt = Lion(net.parameters(), lr=0.01)
""",
    ),
    "a loss with weights of its own": Cell(
        """
for x, y in loader:
    opt.zero_grad()
    loss = center(model(x), y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(losses, center.centers.sum().item())
""",
        f"""{MODEL}
class Center(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(2, 2))
        self.weight = weight
    def forward(self, out, y):
        return F.cross_entropy(out, y) + self.weight * (out - self.centers[y]).pow(2).mean()
center = Center(0.3)
opt = torch.optim.Adam([*model.parameters(), *center.parameters()], lr=0.01)
""",
    ),
    "double precision": Cell(
        """
for i in range(8):
    out = model(inputs)
    loss = (out - target).pow(2).sum()
    opt.zero_grad()
    loss.backward()
    opt.step()
    print(i, loss.item())
""",
        f"""{DATA}
model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1)).double()
inputs = torch.rand(7, 3, dtype=torch.float64)
target = inputs.sum(1, keepdim=True)
opt = torch.optim.Rprop(model.parameters(), lr=0.01)
""",
    ),
    "bfloat16 model": Cell(
        """
for x, y in loader:
    out = model(x.bfloat16())
    loss = F.cross_entropy(out.float(), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(losses)
""",
        f"{DATA}\nmodel = nn.Linear(6, 2).to(torch.bfloat16)\nopt = torch.optim.SGD(model.parameters(), lr=0.1)",
    ),
    "a module that counts": Cell(
        """
for x, y in loader:
    opt.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    opt.step()
print(net.steps, len(net.seen), net.seen[-1] == net.last, loss.item())
""",
        f"""{DATA}
class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)
        self.steps, self.last, self.seen = 0, None, []
    def forward(self, x):
        out = self.fc(x)
        self.steps += 1
        self.last = out.detach().mean().item()
        self.seen.append(self.last)
        return out
net = Counting()
opt = torch.optim.SGD(net.parameters(), lr=0.1)
""",
        solo="`net.steps`",
    ),
    "a trainer class with its own optimizer": Cell(
        """
trainer = Trainer(model, loader, lr=0.02)
trainer.fit(2)
print(trainer.history, trainer.global_step)
""",
        f"""{MODEL}
class Trainer:
    def __init__(self, model, loader, lr):
        self.model, self.loader = model, loader
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        self.loss_fn = nn.CrossEntropyLoss()
        self.history, self.global_step = [], 0
    def train_epoch(self):
        total = 0.0
        for x, y in self.loader:
            self.optimizer.zero_grad()
            loss = self.loss_fn(self.model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.global_step += 1
            total += loss.item()
        return total / len(self.loader)
    def fit(self, epochs):
        for epoch in range(epochs):
            self.history.append(self.train_epoch())
            self.scheduler.step()
            print(f"epoch {{epoch}}: {{self.history[-1]:.5f}} lr {{self.scheduler.get_last_lr()[0]:.4f}}")
""",
    ),
    "two views of one storage": Cell(
        """
for x, y in loader:
    loss = F.cross_entropy(x @ weight + bias, y)
    loss.backward()
    with torch.no_grad():
        flat -= 0.1 * torch.cat([weight.grad.flatten(), bias.grad])
        weight.grad = bias.grad = None
    losses.append(loss.item())
print(losses, weight.data_ptr() == flat.data_ptr())
""",
        f"""{DATA}
flat = 0.3 * torch.randn(14)
weight = flat[:12].view(6, 2).requires_grad_()
bias = flat[12:].requires_grad_()
""",
    ),
    "a helper module beside the notebook": Cell(
        """
for x, y in loader:
    loss = helpers.step(model, optimizer, x, y)
    losses.append(loss.item())
    if layers.is_big(loss.item()):
        print("big", len(losses))
print(losses, helpers.CALLS, layers.Scale(2.0).factor)
""",
        f"""{MODEL}
import helpers
from parts import layers
model = nn.Sequential(nn.Linear(6, 12), layers.Scale(0.5), nn.Tanh(), nn.Linear(12, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
""",
        by_value=True,
        files={
            "helpers.py": """
import torch.nn.functional as F
from parts.layers import smooth
CALLS = {"step": 0}
def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = smooth(F.cross_entropy(model(x), y))
    loss.backward()
    optimizer.step()
    CALLS["step"] += 1
    return loss
""",
            "parts/__init__.py": "",
            "parts/layers.py": """
import torch
LIMIT = 0.7
class Scale(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def forward(self, x):
        return x * self.factor
def smooth(loss):
    return loss * 1.0
def is_big(value):
    return value > LIMIT
""",
        },
    ),
    "a scripted model": Cell(
        """
for x, y in loader:
    opt.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(losses)
""",
        f"""{DATA}
net = torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
""",
    ),
    "a setting that looks like a key": Cell(
        """
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(model(x), y) * config["weight"]
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if config["verbose"]:
        print(len(losses), loss.item())
""",
        f'{MODEL}\nconfig = {{"weight": 0.5, "verbose": True, "api_key": "not-for-workers"}}\nhf_token = "hf_" + "a" * 34',
    ),
}
