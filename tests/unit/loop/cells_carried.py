"""What one iteration hands to the next: tensors, counters, buffers, running numbers; and what may be shared all the same."""

from catalogue import Cell

SETUP = """
import copy, math, random
from collections import deque
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(48, 6)
Y = (X.sum(1) > 0).long()
T = X @ torch.randn(6, 1)
loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
opt = torch.optim.Adam(model.parameters(), lr=0.01)
criterion = nn.CrossEntropyLoss()
"""

STEP = """
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
"""

TEXT = """
tokens = torch.randint(0, 11, (4, 41))
class CharRNN(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.rnn = kind(8, 10, batch_first=True)
        self.head = nn.Linear(10, 11)
    def forward(self, x, state=None):
        out, state = self.rnn(self.embed(x), state)
        return self.head(out), state
"""

TRAINER = """
class Trainer:
    def __init__(self, model, opt, base_lr=0.02, warmup=4):
        self.model, self.opt = model, opt
        self.base_lr, self.warmup = base_lr, warmup
        self.global_step = 0
        self.best, self.bad, self.patience = math.inf, 0, 2
        self.log = []
    def set_lr(self):
        lr = self.base_lr * min(1.0, (self.global_step + 1) / self.warmup)
        for group in self.opt.param_groups:
            group["lr"] = lr
        return lr
    def train_step(self, x, y):
        lr = self.set_lr()
        self.opt.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.opt.step()
        self.global_step += 1
        self.log.append((self.global_step, round(lr, 6)))
        return loss
    def should_stop(self, value):
        if value < self.best - 1e-3:
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        return self.bad > self.patience
trainer = Trainer(model, opt)
"""

DQN = """
class QNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    def forward(self, x):
        return self.layers(x)

class ReplayMemory:
    def __init__(self, capacity):
        self.memory = deque([], maxlen=capacity)
    def push(self, *transition):
        self.memory.append(transition)
    def sample(self, n):
        return random.sample(self.memory, n)
    def __len__(self):
        return len(self.memory)

q, target = QNet(), QNet()
target.load_state_dict(q.state_dict())
q_opt = torch.optim.Adam(q.parameters(), lr=0.01)
memory = ReplayMemory(64)
"""

CELLS = {
    "hidden state as a pair": Cell(
        """
net = CharRNN(nn.LSTM)
adam = torch.optim.Adam(net.parameters(), lr=0.01)
state = (torch.zeros(1, 4, 10), torch.zeros(1, 4, 10))
for i in range(0, 40, 5):
    x, y = tokens[:, i:i + 5], tokens[:, i + 1:i + 6]
    state = tuple(s.detach() for s in state)
    logits, state = net(x, state)
    loss = F.cross_entropy(logits.reshape(-1, 11), y.reshape(-1))
    adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    adam.step()
    print(i, loss.item())
""",
        SETUP + TEXT,
        solo="`state`",
        by_value=True,
    ),
    "hidden state from None": Cell(
        """
net = CharRNN(nn.GRU)
adam = torch.optim.Adam(net.parameters(), lr=0.01)
hidden = None
for i in range(8):
    x, y = tokens[:, 5 * i:5 * i + 5], tokens[:, 5 * i + 1:5 * i + 6]
    logits, hidden = net(x, hidden)
    hidden = hidden.detach()
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
print(loss.item(), hidden.shape)
""",
        SETUP + TEXT,
        solo="`hidden`",
        by_value=True,
    ),
    "hidden states in a list": Cell(
        """
cells = nn.ModuleList([nn.GRUCell(6, 5), nn.GRUCell(5, 5)])
head = nn.Linear(5, 2)
sgd = torch.optim.SGD([*cells.parameters(), *head.parameters()], lr=0.1)
hs = [torch.zeros(8, 5), torch.zeros(8, 5)]
for x, y in loader:
    inp, hs = x, [h.detach() for h in hs]
    for k, cell in enumerate(cells):
        hs[k] = inp = cell(inp, hs[k])
    loss = criterion(head(inp), y)
    sgd.zero_grad()
    loss.backward()
    sgd.step()
    print(round(loss.item(), 6), sum(h.norm().item() for h in hs))
""",
        SETUP,
        solo="`hs`",
        by_value=True,
        ignored=frozenset({"cell"}),
    ),
    "hidden state on an object": Cell(
        """
class Stream:
    def __init__(self, net):
        self.net, self.hidden, self.seen = net, None, 0
    def loss(self, x, y):
        logits, hidden = self.net(x, self.hidden)
        self.hidden = hidden.detach()
        self.seen += x.numel()
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
net = CharRNN(nn.GRU)
adam = torch.optim.Adam(net.parameters(), lr=0.01)
stream = Stream(net)
for i in range(8):
    loss = stream.loss(tokens[:, 5 * i:5 * i + 5], tokens[:, 5 * i + 1:5 * i + 6])
    adam.zero_grad()
    loss.backward()
    adam.step()
print(loss.item(), stream.seen, stream.hidden.sum().item())
""",
        SETUP + TEXT,
        solo="`stream.hidden`",
        by_value=True,
    ),
    "hidden state inside the model": Cell(
        """
class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head, self.h = nn.GRUCell(6, 5), nn.Linear(5, 2), None
    def forward(self, x):
        h = self.cell(x) if self.h is None else self.cell(x, self.h)
        self.h = h.detach()
        return self.head(h)
net = Stateful()
adam = torch.optim.Adam(net.parameters(), lr=0.01)
for x, y in loader:
    loss = criterion(net(x), y)
    adam.zero_grad()
    loss.backward()
    adam.step()
print(loss.item())
""",
        SETUP,
        solo="`net.h`",
        by_value=True,
    ),
    "truncated backpropagation": Cell(
        """
net = CharRNN(nn.GRU)
adam = torch.optim.Adam(net.parameters(), lr=0.01)
state, window, shown = None, [], []
for i in range(20):
    logits, state = net(tokens[:, i:i + 1], state)
    window.append(F.cross_entropy(logits[:, 0], tokens[:, i + 1]).item())
    loss = F.cross_entropy(logits[:, 0], tokens[:, i + 1])
    adam.zero_grad()
    loss.backward()
    adam.step()
    state = state.detach()
    if (i + 1) % 5 == 0:
        shown.append(sum(window) / len(window))
        window = []
print(shown)
""",
        SETUP + TEXT,
        solo="`state`",
        by_value=True,
    ),
    "previous loss, plain": Cell(
        f"""
prev_loss = None
for epoch in range(2):
    for x, y in loader:{STEP.replace("    ", "        ")}
        if prev_loss is not None and loss.item() > 1.05 * prev_loss:
            for group in opt.param_groups:
                group["lr"] *= 0.7
        prev_loss = loss.item()
    print(epoch, opt.param_groups[0]["lr"], prev_loss)
""",
        SETUP,
        solo="`prev_loss`",
        by_value=True,
        ignored=frozenset({"group"}),
    ),
    "previous loss, a tensor": Cell(
        """
prev = torch.zeros(())
for x, y in loader:
    opt.zero_grad()
    loss = criterion(model(x), y)
    total = loss + 0.1 * (loss - prev).abs()
    total.backward()
    opt.step()
    prev = loss.detach()
    print(total.item())
""",
        SETUP,
        solo="`prev`",
        by_value=True,
    ),
    "replay memory": Cell(
        """
state = torch.zeros(1, 3)
steps_done, returns = 0, []
for i in range(14):
    eps = 0.1 + 0.8 * math.exp(-steps_done / 10)
    steps_done += 1
    if random.random() > eps:
        with torch.no_grad():
            action = q(state).max(1).indices.view(1, 1)
    else:
        action = torch.tensor([[random.randrange(2)]])
    following = torch.tanh(state + 0.3 * torch.randn(1, 3) + 0.1 * action)
    reward = -following.pow(2).sum().view(1)
    memory.push(state, action, following, reward)
    state = following
    returns.append(reward.item())
    if len(memory) < 4:
        continue
    batch = memory.sample(4)
    states, actions, nexts, rewards = (torch.cat(part) for part in zip(*batch))
    with torch.no_grad():
        wanted = rewards + 0.9 * target(nexts).max(1).values
    loss = F.smooth_l1_loss(q(states).gather(1, actions).squeeze(1), wanted)
    q_opt.zero_grad()
    loss.backward()
    q_opt.step()
    if i % 5 == 0:
        target.load_state_dict(q.state_dict())
        print(i, loss.item(), len(memory))
""",
        SETUP + DQN,
        solo="`state`",
        by_value=True,
    ),
    "replay buffer of numbers": Cell(
        """
buffer = deque(maxlen=20)
w = torch.zeros(2, requires_grad=True)
sgd = torch.optim.SGD([w], lr=0.05)
for i in range(12):
    point = (random.random(), random.random())
    buffer.append((point, 3 * point[0] - point[1]))
    points, values = zip(*random.sample(buffer, min(len(buffer), 4)))
    loss = F.mse_loss(torch.tensor(points) @ w, torch.tensor(values))
    sgd.zero_grad()
    loss.backward()
    sgd.step()
print(len(buffer), w.tolist())
""",
        SETUP,
        solo="`buffer`",
        by_value=True,
    ),
    "functional update of a dict": Cell(
        """
from torch.func import functional_call, grad
net = nn.Linear(6, 2)
params = {name: p.detach() for name, p in net.named_parameters()}
def loss_fn(params, x, y):
    return F.cross_entropy(functional_call(net, params, (x,)), y)
for x, y in loader:
    grads = grad(loss_fn)(params, x, y)
    params = {name: p - 0.1 * grads[name] for name, p in params.items()}
    loss = loss_fn(params, x, y)
    print(loss.item())
    if False:
        loss.backward()
print(sorted(params), params["bias"].tolist())
""",
        SETUP,
        solo="`params`",
        by_value=True,
    ),
    "running mean of the inputs": Cell(
        """
mean, count = torch.zeros(6), 0
for x, y in loader:
    mean = 0.9 * mean + 0.1 * x.mean(0)
    count += 1
    opt.zero_grad()
    loss = criterion(model(x - mean), y)
    loss.backward()
    opt.step()
print(count, mean.tolist(), loss.item())
""",
        SETUP,
        solo="`mean`",
        by_value=True,
    ),
    "momentum by hand": Cell(
        """
velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
for epoch in range(2):
    for x, y in loader:
        loss = criterion(model(x), y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                velocity[name].mul_(0.9).add_(p.grad)
                p -= 0.05 * velocity[name]
    print(epoch, loss.item())
print(sum(v.norm().item() for v in velocity.values()))
""",
        SETUP,
        by_value=True,
    ),
    "curriculum by the step": Cell(
        """
global_step = 10
for epoch in range(2):
    for x, y in loader:
        global_step += 1
        hard = 1.0 if global_step > 16 else 0.1
        x = x + 0.1 * hard * torch.randn_like(x)
        opt.zero_grad()
        loss = criterion(model(x), y) * min(1.0, global_step / 20)
        loss.backward()
        opt.step()
        if global_step % 4 == 0:
            print(global_step, hard, loss.item())
print(global_step)
""",
        SETUP,
    ),
    "a trainer's step in its learning rate": Cell(
        """
for epoch in range(2):
    for x, y in loader:
        loss = trainer.train_step(x, y)
    print(epoch, trainer.global_step, loss.item(), trainer.opt.param_groups[0]["lr"])
print(trainer.log)
""",
        SETUP + TRAINER,
    ),
    "a step count in a dict": Cell(
        """
progress = {"epoch": 0, "step": 0}
for epoch in range(2):
    progress["epoch"] = epoch
    for x, y in loader:
        for group in opt.param_groups:
            group["lr"] = 0.01 / (1 + progress["step"])
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        progress["step"] = progress["step"] + 1
    print(progress, opt.param_groups[0]["lr"])
""",
        SETUP,
    ),
    "early stopping kept on an object": Cell(
        """
for i, (x, y) in enumerate(loader):
    loss = trainer.train_step(x, y)
    if trainer.should_stop(loss.item()):
        print("stop", i)
        break
print(trainer.bad, trainer.best, len(trainer.log))
""",
        SETUP + TRAINER,
        solo="`trainer.bad`",
        by_value=True,
    ),
    "averaged copy by formula": Cell(
        """
ema = copy.deepcopy(model)
for p in ema.parameters():
    p.requires_grad_(False)
decay = 0.9
def update(ema, model):
    with torch.no_grad():
        for e, p in zip(ema.parameters(), model.parameters()):
            e.mul_(decay).add_(p, alpha=1 - decay)
for epoch in range(2):
    for x, y in loader:
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        update(ema, model)
    with torch.no_grad():
        print(epoch, criterion(ema(X), Y).item())
""",
        SETUP,
    ),
    "actor and critic, running reward printed": Cell(
        """
actor, critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), nn.Linear(3, 1)
a_opt = torch.optim.Adam(actor.parameters(), lr=0.01)
c_opt = torch.optim.Adam(critic.parameters(), lr=0.01)
running_reward = 0.0
for episode in range(8):
    obs = torch.randn(10, 3)
    policy = torch.distributions.Categorical(logits=actor(obs))
    action = policy.sample()
    reward = 1.0 - (action - (obs[:, 0] > 0).long()).abs().float()
    advantage = reward - critic(obs).squeeze(1)
    critic_loss = advantage.pow(2).mean()
    actor_loss = -(policy.log_prob(action) * advantage.detach()).mean()
    a_opt.zero_grad(); c_opt.zero_grad()
    actor_loss.backward()
    critic_loss.backward()
    a_opt.step(); c_opt.step()
    running_reward = 0.95 * running_reward + 0.05 * reward.sum().item()
    if episode % 3 == 0:
        print(f"episode {episode}: running reward {running_reward:.4f}")
""",
        SETUP,
    ),
    "actor and critic, until the running reward is high": Cell(
        """
actor, critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), nn.Linear(3, 1)
both = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=0.01)
running_reward = 0.0
for episode in range(12):
    obs = torch.randn(10, 3)
    policy = torch.distributions.Categorical(logits=actor(obs))
    action = policy.sample()
    reward = 1.0 - (action - (obs[:, 0] > 0).long()).abs().float()
    advantage = reward - critic(obs).squeeze(1)
    loss = advantage.pow(2).mean() - (policy.log_prob(action) * advantage.detach()).mean()
    both.zero_grad()
    loss.backward()
    both.step()
    running_reward = 0.7 * running_reward + 0.3 * reward.sum().item()
    if running_reward > 4.0:
        print("solved", episode, running_reward)
        break
""",
        SETUP,
        solo="`running_reward`",
        by_value=True,
    ),
    "a critic that trains more often": Cell(
        """
G = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
D = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
opt_G = torch.optim.RMSprop(G.parameters(), lr=1e-3)
opt_D = torch.optim.RMSprop(D.parameters(), lr=1e-3)
n_critic = 3
for epoch in range(2):
    for i, (real, _) in enumerate(loader):
        z = torch.randn(real.size(0), 4)
        opt_D.zero_grad()
        loss_D = D(G(z).detach()).mean() - D(real).mean()
        loss_D.backward()
        opt_D.step()
        for p in D.parameters():
            p.data.clamp_(-0.1, 0.1)
        if i % n_critic == 0:
            opt_G.zero_grad()
            loss_G = -D(G(z)).mean()
            loss_G.backward()
            opt_G.step()
            print(epoch, i, loss_D.item(), loss_G.item())
""",
        SETUP,
    ),
    "cleared at the loop's end": Cell(
        """
def finish(optimizers):
    for o in optimizers:
        o.step()
    for o in optimizers:
        o.zero_grad()
for x, y in loader:
    loss = criterion(model(x), y)
    loss.backward()
    finish([opt])
print(loss.item())
""",
        SETUP,
    ),
    "two steps of a sharp minimiser": Cell(
        """
class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **kw):
        super().__init__(params, dict(rho=rho, **kw))
        self.base = base(self.param_groups, **kw)
    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad, alpha=group["rho"])
        self.zero_grad()
    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()
sam = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
for x, y in loader:
    criterion(model(x), y).backward()
    sam.first_step()
    loss = criterion(model(x), y)
    loss.backward()
    sam.second_step()
    print(loss.item())
""",
        SETUP,
    ),
    "hidden states in an object's list": Cell(
        """
class Stack:
    def __init__(self):
        self.h = [torch.zeros(8, 5), torch.zeros(8, 5)]
stack = Stack()
cells = nn.ModuleList([nn.GRUCell(6, 5), nn.GRUCell(5, 5)])
head = nn.Linear(5, 2)
sgd = torch.optim.SGD([*cells.parameters(), *head.parameters()], lr=0.1)
for x, y in loader:
    inp = x
    for k in range(2):
        stack.h[k] = cells[k](inp, stack.h[k].detach())
        inp = stack.h[k]
    loss = criterion(head(inp), y)
    sgd.zero_grad()
    loss.backward()
    sgd.step()
    print(loss.item())
print(stack.h[0].sum().item())
""",
        SETUP,
        solo="`stack.h`",
        by_value=True,
    ),
    "a large state on an object": Cell(
        """
class Box: pass
box = Box()
box.h = torch.zeros(300, 300)
w = nn.Linear(300, 300)
sgd = torch.optim.SGD(w.parameters(), lr=0.1)
for i in range(5):
    box.h = torch.tanh(w(box.h.detach()) + i)
    loss = box.h.mean()
    sgd.zero_grad()
    loss.backward()
    sgd.step()
    print(loss.item())
print(box.h.sum().item())
""",
        SETUP,
        solo="`box.h`",
        by_value=True,
    ),
    "losses in a dict and on an object": Cell(
        """
class Out: pass
out, parts = Out(), {}
for x, y in loader:
    opt.zero_grad()
    out.logits = model(x)
    parts["data"] = criterion(out.logits, y)
    parts["size"] = 0.1 * out.logits.pow(2).mean()
    loss = sum(parts.values())
    loss.backward()
    opt.step()
    print({k: round(v.item(), 6) for k, v in parts.items()})
print(sorted(parts), parts["data"].item(), out.logits.shape)
""",
        SETUP,
    ),
    "a weight that is bound anew": Cell(
        """
w = torch.zeros(6, 1, requires_grad=True)
for epoch in range(2):
    for x, y in loader:
        loss = ((x @ w).squeeze(1) - y.float()).pow(2).mean()
        loss.backward()
        w = (w - 0.1 * w.grad).detach().requires_grad_()
    print(loss.item())
print(w.tolist(), w.requires_grad)
""",
        SETUP,
        solo="`w`",
        by_value=True,
    ),
    "a warm-up that skips": Cell(
        """
step = 0
for x, y in loader:
    step += 1
    if step < 3:
        continue
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    print(step)
""",
        SETUP,
    ),
    "a confusion matrix summed in place": Cell(
        """
confusion = torch.zeros(2, 2)
for x, y in loader:
    opt.zero_grad()
    out = model(x)
    loss = criterion(out, y)
    loss.backward()
    opt.step()
    for t, p in zip(y, out.argmax(1)):
        confusion[t, p] += 1
print(confusion.tolist())
""",
        SETUP,
        solo="`confusion`",
        by_value=True,
    ),
    "gathered with a scaler": Cell(
        """
scaler = torch.amp.GradScaler("cpu", enabled=False)
accum = 2
opt.zero_grad()
for i, (x, y) in enumerate(loader):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(model(x), y) / accum
    scaler.scale(loss).backward()
    if (i + 1) % accum == 0 or i + 1 == len(loader):
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad(set_to_none=True)
print(loss.item())
""",
        SETUP,
        solo="gradients are gathered",
        by_value=True,
    ),
    "a trainer with a scheduler of its own": Cell(
        """
class Own:
    def __init__(self):
        self.net, self.steps = model, 0
        self.optim = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.sched = torch.optim.lr_scheduler.StepLR(self.optim, 2, 0.5)
        self.meters = {"loss": [], "n": 0}
    def fit(self, loader):
        for x, y in loader:
            self.step(x, y)
    def step(self, x, y):
        self.optim.zero_grad()
        loss = criterion(self.net(x), y)
        loss.backward()
        self.optim.step()
        self.sched.step()
        self.steps += 1
        self.meters["loss"].append(loss.item())
        self.meters["n"] += len(x)
        if self.steps % 3 == 0:
            print(self.steps, self.sched.get_last_lr(), len(self.meters["loss"]), self.meters["n"])
own = Own()
for epoch in range(2):
    own.fit(loader)
""",
        SETUP,
    ),
    "lists on an object and in a dict that are added to": Cell(
        """
class Log:
    def __init__(self):
        self.losses, self.outs = [], []
    def add(self, loss, out):
        self.losses += [loss.detach()]
        self.outs += [out.detach().mean(0), out.shape[0]]
log, history = Log(), {"loss": [], "lr": [0.0]}
for epoch in range(2):
    for x, y in loader:
        opt.zero_grad()
        out = model(x)
        loss = criterion(out, y)
        loss.backward()
        opt.step()
        history["loss"] += [loss]
        history["lr"] += [opt.param_groups[0]["lr"]]
        log.add(loss, out)
    print(epoch, len(history["loss"]), len(log.outs), history["lr"][-1])
""",
        SETUP,
    ),
}
