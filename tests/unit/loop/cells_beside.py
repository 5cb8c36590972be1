"""What a loop keeps beside: sums, meters, lists, records, files, logs, plots, metrics, best states, and leaving it in many ways."""

from catalogue import Cell

SETUP = """
import copy, csv, io, json, logging, math, os, sys, tempfile, time, types, warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

X = torch.randn(40, 6)
Y = (X.sum(1) > 0).long()
data = TensorDataset(X, Y)
loader = DataLoader(data, batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.CrossEntropyLoss()
"""

STEP = """    opt.zero_grad()
    out = model(x)
    loss = criterion(out, y)
    loss.backward()
    opt.step()
"""
STEP8 = "".join("    " + line + "\n" for line in STEP.splitlines())


def cell(code, setup="", **more):
    return Cell(code, SETUP + setup, **more)


METER = """
class AverageMeter:
    def __init__(self):
        self.reset()
    def reset(self):
        self.sum, self.count, self.avg = 0.0, 0, 0.0
    def update(self, value, n=1):
        self.sum += value * n
        self.count += n
        self.avg = self.sum / self.count
"""

METRIC = """
class Accuracy:
    def __init__(self):
        self.reset()
    def reset(self):
        self.correct, self.total = torch.tensor(0), torch.tensor(0)
    def update(self, preds, target):
        self.correct += (preds.argmax(1) == target).sum()
        self.total += target.numel()
    def compute(self):
        return self.correct.float() / self.total
"""

MODULE_METRIC = """
class MeanLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))
    def update(self, losses):
        self.total += losses.sum()
        self.seen += losses.numel()
    def compute(self):
        return self.total / self.seen
    def reset(self):
        self.total.zero_()
        self.seen.zero_()
"""

WRITER = """
class SummaryWriter:
    __module__ = "tensorboardX.writer"
    def __init__(self):
        self.kept, self.file = [], io.StringIO()
        self.lock = __import__("threading").Lock()
    def add_scalar(self, tag, value, step=None):
        self.kept.append((tag, round(float(value), 6), step))
    def add_histogram(self, tag, values, step=None):
        self.kept.append((tag, tuple(values.shape), round(values.sum().item(), 5)))
    def add_images(self, tag, images, step=None):
        self.kept.append((tag, tuple(images.shape)))
    def flush(self): ...
"""

CELLS = {
    "beside: running sums with resets": cell(f"""
running, seen, best = 0.0, 0, []
for i, (x, y) in enumerate(loader):
{STEP}
    running += loss.item() * x.size(0)
    seen += x.size(0)
    if (i + 1) % 2 == 0:
        print(f"{{i:3d}} {{running / seen:.6f}} {{seen}}")
        running, seen = 0.0, 0
"""),
    "beside: meters in a dict": cell(
        f"""
meters = {{"loss": AverageMeter(), "acc": AverageMeter()}}
for epoch in range(2):
    for m in meters.values():
        m.reset()
    for x, y in loader:
{STEP8}
        meters["loss"].update(loss.item(), len(x))
        meters["acc"].update((out.argmax(1) == y).float().mean().item(), len(x))
    print(epoch, *(f"{{k}} {{m.avg:.5f}}" for k, m in meters.items()))
""",
        METER,
    ),
    "beside: lists, dicts, defaultdict, Counter": cell(f"""
history, by_class, counted, last = defaultdict(list), {{}}, Counter(), deque(maxlen=3)
for i, (x, y) in enumerate(loader):
{STEP}
    history["loss"].append(loss.item())
    history["lr"].append(opt.param_groups[0]["lr"])
    by_class.setdefault(int(y[0]), []).append(i)
    counted.update(y.tolist())
    last.append(round(loss.item(), 4))
print(dict(history), by_class, counted, last)
"""),
    "beside: records": cell(
        f"""
records = []
for i, (x, y) in enumerate(loader):
{STEP}
    records.append(Step(i, loss.item()))
    rows.append(Row(i, len(x), float(loss)))
    box.last, box.count = loss.item(), box.count + 1
print(records[-1], rows[-1], box)
""",
        """
@dataclass
class Step:
    index: int
    loss: float
    tags: list = field(default_factory=list)
Row = namedtuple("Row", "index size loss")
rows, box = [], types.SimpleNamespace(count=0, last=None)
""",
        by_value=True,
    ),
    "beside: records with tensors": cell(
        f"""
kept = []
for i, (x, y) in enumerate(loader):
{STEP}
    kept.append(Pair(i, loss.detach()))
print(len(kept), [p.index for p in kept], round(kept[-1].loss.item(), 6))
""",
        """
@dataclass
class Pair:
    index: int
    loss: torch.Tensor
""",
        by_value=True,
    ),
    "beside: tensors kept in lists": cell(
        f"""
kept, outs = [], []
for i, (x, y) in enumerate(loader):
{STEP}
    kept.append(loss)
    outs.append(out.detach().argmax(1))
    if i % 2:
        print(i, round(kept[-1].item(), 6), len(outs))
print(round(torch.stack(kept).mean().item(), 6), torch.cat(outs).shape)
""",
        by_value=True,
    ),
    "beside: parts of a loss in a list": cell("""
for i, (x, y) in enumerate(loader):
    parts = []
    for k in range(2):
        parts.append(criterion(model(x[k::2]), y[k::2]))
    loss = torch.stack(parts).sum()
    opt.zero_grad()
    loss.backward()
    opt.step()
    print(i, len(parts), [round(p.item(), 5) for p in parts])
"""),
    "beside: a loss kept on self": cell(
        """
for x, y in loader:
    trainer.fit(x, y)
print(len(trainer.seen), trainer.count)
""",
        """
class Trainer:
    def __init__(self):
        self.loss, self.seen, self.count = None, [], 0
    def fit(self, x, y):
        self.loss = criterion(model(x), y)
        opt.zero_grad()
        self.loss.backward()
        opt.step()
        self.count += 1
        self.seen.append(self.loss.item())
trainer = Trainer()
""",
    ),
    "beside: best state inside": cell(
        f"""
best, best_state = math.inf, None
for i, (x, y) in enumerate(loader):
{STEP}
    if loss.item() < best:
        best, best_state = loss.item(), copy.deepcopy(model.state_dict())
        print("better", i)
model.load_state_dict(best_state)
print(type(best_state).__name__, list(best_state))
""",
        solo="`best`",
        by_value=True,
    ),
    "beside: best model inside": cell(
        f"""
best, best_model = math.inf, None
for i, (x, y) in enumerate(loader):
{STEP}
    if loss.item() < best:
        best = loss.item()
        best_model = copy.deepcopy(model)
print(sum(p.sum().item() for p in best_model.parameters()))
""",
        solo="`best`",
        by_value=True,
    ),
    "beside: early stop by patience outside": cell(
        f"""
best, bad = math.inf, 0
for epoch in range(3):
    total = 0.0
    for x, y in loader:
{STEP8}
        total += loss.item()
    if total < best - 10:
        best, bad = total, 0
    else:
        bad += 1
    print(epoch, bad)
    if bad >= 2:
        break
""",
    ),
    "beside: stop inside": cell(
        f"""
losses = []
for i, (x, y) in enumerate(loader):
{STEP}
    losses.append(loss.item())
    if len(losses) > 2 and losses[-1] > 0:
        print("enough", i)
        break
else:
    print("never")
""",
        solo="`losses`",
        by_value=True,
    ),
    "beside: try inside": cell(f"""
skipped = 0
for i, (x, y) in enumerate(loader):
    try:
        bad = model(x[:, :5]) if i % 2 else None
    except RuntimeError as error:
        skipped += 1
        print("skipped", i, str(error).split("(")[0])
        continue
{STEP}
    losses = [loss.item()]
print(skipped)
"""),
    "beside: try around": cell(f"""
try:
    for i, (x, y) in enumerate(loader):
{STEP8}
        if i == 3:
            model(x[:, :5])
        print(i)
except KeyboardInterrupt:
    print("interrupted")
except RuntimeError as error:
    print("failed", i, type(error).__name__)
finally:
    print("done")
"""),
    "beside: raise from": cell(f"""
class Diverged(Exception):
    def __init__(self, step, value):
        super().__init__(f"diverged at {{step}}")
        self.step, self.value = step, value
try:
    for i, (x, y) in enumerate(loader):
{STEP8}
        try:
            if i == 2:
                model(x[:, :4])
        except RuntimeError as error:
            raise Diverged(i, 1.5) from error
except Diverged as error:
    print(error.step, error.value, error, type(error.__cause__).__name__)
"""),
    "beside: time": cell(
        f"""
start, t0 = time.time(), time.perf_counter()
spent = []
for x, y in loader:
    tic = time.perf_counter()
{STEP}
    spent.append(time.perf_counter() - tic)
    assert 0 <= time.time() - start < 3600 and 0 <= time.perf_counter() - t0 < 3600
print(len(spent), all(s >= 0 for s in spent))
""",
        ignored=frozenset({"start", "t0", "tic", "spent"}),
    ),
    "beside: a summary writer": cell(
        f"""
writer = SummaryWriter()
for i, (x, y) in enumerate(loader):
{STEP}
    writer.add_scalar("loss", loss.item(), i)
    writer.add_scalar("again", loss, i)
    if i % 3 == 0:
        for name, p in model.named_parameters():
            writer.add_histogram(name, p, i)
        writer.add_images("x", x.view(-1, 1, 2, 3), i)
writer.flush()
print(len(writer.kept), writer.kept[:3])
""",
        WRITER,
        by_value=True,
    ),
    "beside: TensorBoard": cell(
        f"""
from torch.utils.tensorboard import SummaryWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
folder = tempfile.mkdtemp()
writer = SummaryWriter(folder)
for i, (x, y) in enumerate(loader):
{STEP}
    writer.add_scalar("loss", loss.item(), i)
    writer.add_scalar("again", loss, i)
    if i % 3 == 0:
        for name, p in model.named_parameters():
            writer.add_histogram(name, p, i)
        writer.add_images("x", x.view(-1, 1, 2, 3), i)
writer.close()
events = EventAccumulator(folder)
events.Reload()
print([(event.step, round(event.value, 5)) for tag in ("loss", "again") for event in events.Scalars(tag)], len(events.Images("x")))
""",
        ignored=frozenset({"writer", "folder", "events"}),
    ),
    "beside: torchmetrics": cell(
        """
import torchmetrics
accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=2)
mean = torchmetrics.MeanMetric()
confusion = torchmetrics.ConfusionMatrix(task="multiclass", num_classes=2)
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        out = model(x)
        loss = F.cross_entropy(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        accuracy.update(out.argmax(1), y)
        mean(loss)
        confusion.update(out.argmax(1), y)
        if i % 3 == 2:
            print(i, f"{accuracy.compute():.4f}", mean.compute().item())
    print(epoch, accuracy.compute().item(), mean.compute().item(), confusion.compute().tolist(), confusion.compute().sum().item())
    for metric in (accuracy, mean, confusion):
        metric.reset()
""",
        ignored=frozenset({"accuracy", "mean", "confusion", "metric"}),
    ),
    "beside: files and csv": cell(
        f"""
log = io.StringIO()
folder = tempfile.mkdtemp()
table = open(os.path.join(folder, "log.csv"), "w", newline="")
rows = csv.writer(table)
rows.writerow(["step", "loss"])
for i, (x, y) in enumerate(loader):
{STEP}
    rows.writerow([i, round(loss.item(), 5)])
    table.flush()
    if i == 1:
        with open(os.path.join(folder, "one.json"), "w") as f:
            json.dump({{"step": i, "loss": round(loss.item(), 5)}}, f)
table.close()
text = open(os.path.join(folder, "log.csv")).read()
print(text.count("\\n"), json.load(open(os.path.join(folder, "one.json")))["step"])
""",
        ignored=frozenset({"folder", "table", "rows", "f", "g", "log"}),
        by_value=True,
    ),
    "beside: logging in the body": cell(
        f"""
for i, (x, y) in enumerate(loader):
{STEP}
    logger.info("step %d loss %.5f", i, loss.item())
    logger.debug("unseen %s", i)
    if i == 2:
        logger.warning("halfway")
print(heard.getvalue())
""",
        """
heard = io.StringIO()
logger = logging.getLogger("beside.train")
logger.handlers, logger.propagate = [logging.StreamHandler(heard)], False
logger.setLevel(logging.INFO)
""",
        ignored=frozenset({"logger", "heard"}),
        by_value=True,
    ),
    "beside: plots": cell(
        f"""
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
losses = []
fig, ax = plt.subplots()
(line,) = ax.plot([], [])
for i, (x, y) in enumerate(loader):
{STEP}
    losses.append(loss.item())
    if i % 2 == 0:
        line.set_data(range(len(losses)), losses)
        ax.set_title(f"step {{i}}")
        small, axes = plt.subplots(1, 2)
        axes[0].plot(losses)
        plt.close(small)
print(ax.get_title(), len(line.get_xdata()))
plt.close("all")
""",
        ignored=frozenset({"fig", "ax", "line", "small", "axes", "plt", "matplotlib"}),
    ),
    "beside: arrays": cell(
        f"""
preds, truth, grown, at = np.zeros((40, 2)), np.zeros(40), np.array([]), 0
for i, (x, y) in enumerate(loader):
{STEP}
    preds[i * 8:(i + 1) * 8] = out.detach().numpy()
    truth[i * 8:(i + 1) * 8] = y
    grown = np.append(grown, loss.item())
print(preds.shape, truth.sum(), grown.shape)
""",
        by_value=True,
    ),
    "beside: saving inside": cell(
        f"""
path = os.path.join(tempfile.mkdtemp(), "m.pt")
saved = []
for i, (x, y) in enumerate(loader):
{STEP}
    if i % 2 == 0:
        torch.save(model.state_dict(), path)
        torch.save({{"step": i, "model": model.state_dict(), "opt": opt.state_dict()}}, path + ".full")
        saved.append(i)
again = torch.load(path)
full = torch.load(path + ".full")
print(saved, type(again).__name__, full["step"], sorted(full))
""",
        ignored=frozenset({"path"}),
    ),
    "beside: a metric of tensors": cell(
        f"""
accuracy = Accuracy()
for epoch in range(2):
    accuracy.reset()
    for i, (x, y) in enumerate(loader):
{STEP8}
        accuracy.update(out, y)
    print(epoch, int(accuracy.total))
print(round(accuracy.compute().item(), 6))
""",
        METRIC,
        by_value=True,
    ),
    "beside: a metric computed in the body": cell(
        f"""
accuracy = Accuracy()
for i, (x, y) in enumerate(loader):
{STEP}
    accuracy.update(out.detach(), y)
    if i % 2 == 1:
        print(i, round(accuracy.compute().item(), 6), int(accuracy.total))
""",
        METRIC,
        by_value=True,
    ),
    "beside: a metric that is a module": cell(
        f"""
mean = MeanLoss()
for i, (x, y) in enumerate(loader):
{STEP}
    mean.update(F.cross_entropy(out, y, reduction="none").detach())
print(mean.seen.item(), round(mean.compute().item(), 6))
""",
        MODULE_METRIC,
        solo="`mean.total`",
        by_value=True,
    ),
    "beside: confusion matrices": cell(
        f"""
table, counts, per_class = torch.zeros(2, 2, dtype=torch.long), np.zeros((2, 2), dtype=int), [0, 0]
for x, y in loader:
{STEP}
    guess = out.argmax(1)
    for t, p in zip(y.view(-1), guess.view(-1)):
        table[t.long(), p.long()] += 1
    np.add.at(counts, (y.numpy(), guess.numpy()), 1)
    for label, hit in zip(y, (guess == y)):
        per_class[label] += hit.item()
print(table.sum().item(), counts.sum())
""",
        by_value=True,
    ),
    "beside: sklearn": cell(
        f"""
truth, guesses = [], []
for i, (x, y) in enumerate(loader):
{STEP}
    truth.extend(y.numpy())
    guesses.extend(out.argmax(1).numpy())
    batch = accuracy_score(y.numpy(), out.argmax(1).numpy())
print(len(truth), confusion_matrix(truth, guesses).sum(), round(batch, 3))
""",
        "from sklearn.metrics import accuracy_score, confusion_matrix\nimport random\n"
        "torch.manual_seed(1); random.seed(1); np.random.seed(1)\n",  # importing it draws
        by_value=True,
    ),
    "beside: a bar's description": cell(f"""
from tqdm import tqdm
bar = tqdm(loader, file=io.StringIO())
for i, (x, y) in enumerate(bar):
{STEP}
    bar.set_description(f"loss {{loss.item():.3f}}")
    bar.set_postfix({{"i": i, "lr": opt.param_groups[0]["lr"]}})
print(i)
"""),
    "beside: a tracking module": cell(
        f"""
import wandb
run = wandb.init(project="beside")
for i, (x, y) in enumerate(loader):
{STEP}
    wandb.log({{"loss": loss.item(), "step": i}})
    run.log({{"tensor": loss}})
print(len(wandb.kept))
""",
        files={
            "wandb.py": """
kept = []
class Run:
    def log(self, values):
        kept.append({k: float(v) for k, v in values.items()})
def init(project):
    return Run()
def log(values):
    kept.append(values)
"""
        },
        ignored=frozenset({"run", "wandb"}),
    ),
    "beside: print in many ways": cell(f"""
for i, (x, y) in enumerate(loader):
{STEP}
    print(i, loss.shape, end="; ")
    sys.stdout.write(f"{{i}}\\n")
    print("to the side", i, file=sys.stderr)
    print(f"{{x.size(0)}}", flush=True)
"""),
    "beside: said in the model and the dataset": cell(
        """
for i, (x, y) in enumerate(rows):
    opt.zero_grad()
    print("body", i)
    loss = criterion(noisy(x), y)
    print("after", i)
    loss.backward()
    opt.step()
""",
        """
class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)
    def forward(self, x):
        print("forward", tuple(x.shape))
        warnings.warn("noisy forward")
        logging.getLogger("beside.forward").warning("in forward")
        return self.fc(x)
class Rows(Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, i):
        print("fetch", i)
        return X[i], Y[i]
rows, noisy = DataLoader(Rows(), batch_size=3), Noisy()
opt = torch.optim.SGD(noisy.parameters(), lr=0.1)
""",
    ),
    "beside: a closure that keeps and prints": cell("""
lb, seen = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3), []
for i, (x, y) in enumerate(loader):
    def closure():
        lb.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        seen.append(round(loss.item(), 5))
        print("closure", len(seen))
        return loss
    lb.step(closure)
print(len(seen))
"""),
    "beside: mean of kept losses, printed": cell(
        f"""
losses = []
for i, (x, y) in enumerate(loader):
{STEP}
    losses.append(loss.detach())
    if i % 2:
        print(i, f"{{(sum(losses) / len(losses)).item():.5f}}", f"{{torch.stack(losses).mean():.5f}}")
""",
        solo="`losses`",
        by_value=True,
    ),
    "beside: numbers of a batch": cell(f"""
for i, (x, y) in enumerate(loader):
{STEP}
    ids = y.tolist()
    ids.append(i)
    arr = out.detach().numpy()
    top, low = out.max(1), {{k: v for k, v in zip("ab", out[0].tolist())}}
    print(len(ids), arr.shape, top.values.shape, sorted(low))
"""),
    "beside: skipped and returned": cell("""
def fit(limit):
    seen = 0
    for i, (x, y) in enumerate(loader):
        if i == 1:
            continue
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        seen += 1
        if i == limit:
            return {"seen": seen, "i": i}
    return seen
print(fit(3), fit(9))
"""),
}
