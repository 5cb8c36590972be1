"""Bytes on a worker's link against final loss, at equal samples: per-step fp32 gradients, and local steps with merges. No devices.

Four simulated workers with an optimizer each draw the same batches in the same order; per-step sync is one step on the mean of their
gradients. Changes go through `encode_change`, `decode_change` and `merge` as on the hub; what goes down is the difference between what
the workers hold and the hub's version, in as many bits. Bytes are those of one worker's encoded messages; leases and envelopes aren't in.

Run: nice python -m bench.bytes_loss [--quick] [--task NAME ...] [--length short|long] [--seeds N] [--wide] [--results FILE]
FILE (JSON lines) keeps every run, so that none is done twice. --wide adds what was tried and left out, --shown runs nothing anew.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from bench.common.loss_tasks import TASKS, Task
from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import INNER, PARAM, State
from depin_nb.training.compress import decode_change, encode_change
from depin_nb.training.inner import pack_inner, unpack_inner
from depin_nb.training.merge import Contribution, OuterState, merge

WORKERS = 4
MAX_BYTES = 1 << 28
SEND = StrategyConfig(name="sync", solo=True)  # a version that arrives is taken as it is
LENGTHS = {"short": 1, "long": 4}


@dataclass(frozen=True)
class Setting:
    """How a run is spread. `steps`: (share of the run until which it holds, local steps between merges), none for per-step sync.

    `up`, `down`: bits. `outer_lr`: a number, (first, last) of a line over the run, or `norm`: what makes the mean change as long as the
    workers' own are, at most `norm_cap`; `last_lr`: that of the last merge. `momentum`: the outer one. `inner_lr`: times the user's.
    `inner`: `own` (each worker keeps its optimizer state), `mean` (averaged at merges, bf16 both ways) or `reset`. `average`: share of
    the run whose last versions' mean is the final model. `tail`: share of a lease whose last iterates' mean is handed in. `entry`: steps
    of a loop entry, 0 for one entry; `border`: between entries all workers begin on the optimizer state of the last of them, in `8 bits`
    (training/inner.py) or whole (`last`), on none (`reset`), or go on with their `own`.
    """

    name: str
    steps: tuple[tuple[float, int], ...] = ()
    up: int = 4
    down: int = 4
    outer_lr: float | str | tuple[float, float] = 1.0
    norm_cap: float = 2.0
    last_lr: float | None = None
    momentum: float = 0.0
    inner_lr: float = 1.0
    inner: str = "own"
    average: float = 0.0
    tail: float = 0.0
    entry: int = 0
    border: str = "own"


def every(steps: int) -> tuple[tuple[float, int], ...]:
    return ((1.0, steps),)


PER_STEP = Setting("per-step fp32")
FRONT = (
    Setting("H 10, momentum 0.3", every(10), momentum=0.3),
    Setting("H 30, plain mean", every(30)),
    Setting("H 30, momentum 0.3", every(30), momentum=0.3),
    Setting("H 30, momentum 0.3, rate 1.3, last 1", every(30), momentum=0.3, outer_lr=1.3, last_lr=1.0),
    Setting("H 15, after a quarter 45, momentum 0.3", ((0.25, 15), (1, 45)), momentum=0.3),
    Setting("H 60, momentum 0.3", every(60), momentum=0.3),
    Setting("1 bit, H 10, rate 1.25", every(10), 1, 1, outer_lr=1.25),
    Setting("1 bit, H 12, rate 1.25", every(12), 1, 1, outer_lr=1.25),
    Setting("1 bit, H 20, rate 1.25", every(20), 1, 1, outer_lr=1.25),
)
WIDE = (
    Setting("H 1, fp32", every(1), 32, 32),
    Setting("H 30, momentum 0.3, fp32", every(30), 32, 32, momentum=0.3),
    Setting("H 30, momentum 0.3, mean of the last 30 %", every(30), momentum=0.3, average=0.3),
    Setting("H 30, momentum 0.3, last rate 0.7", every(30), momentum=0.3, last_lr=0.7),
    Setting("H 30, rate on a line from 1.5 to 0.7", every(30), outer_lr=(1.5, 0.7)),
    Setting("H 5, after a tenth 45, momentum 0.3", ((0.1, 5), (1, 45)), momentum=0.3),
    Setting("H 30, momentum 0.3, inner state reset", every(30), momentum=0.3, inner="reset"),
    Setting("H 30, rate 1.5, last 1", every(30), outer_lr=1.5, last_lr=1.0),
    Setting("H 30, inner rate x 1.5", every(30), inner_lr=1.5),
    Setting("H 25, plain mean", every(25)),
    Setting("H 25, rate 0.7, momentum 0.3", every(25), outer_lr=0.7, momentum=0.3),
    Setting("H 25, mean of the iterates' last half, momentum 0.3", every(25), tail=0.5, momentum=0.3),
    Setting("H 25, workers' own norm, last 1", every(25), outer_lr="norm", last_lr=1.0),
    Setting("H 30, momentum 0.3, inner state averaged", every(30), momentum=0.3, inner="mean"),
    Setting("1 bit, H 10, plain mean", every(10), 1, 1),
    Setting("1 bit, H 10, inner rate x 1.3", every(10), 1, 1, inner_lr=1.3),
    Setting("1 bit, H 10, momentum 0.3", every(10), 1, 1, momentum=0.3),
    Setting("2 bits up, 4 down, H 1, rate 1.5", every(1), 2, 4, outer_lr=1.5),
    Setting("H 20, entries of 60 steps", every(20), momentum=0.3, entry=60),
    Setting("H 20, entries of 60 steps, one worker's state for all", every(20), momentum=0.3, entry=60, border="last"),
    Setting("H 20, entries of 60 steps, the same in 8 bits", every(20), momentum=0.3, entry=60, border="8 bits"),
    Setting("H 20, entries of 60 steps, no state", every(20), momentum=0.3, entry=60, border="reset"),
)


def batches(total: int, steps: int, batch: int, seed: int) -> torch.Tensor:
    """Indices (steps, workers, batch): one pass after another, each shuffled anew, dealt in turns."""
    shuffle, need = torch.Generator().manual_seed(1000 + seed), steps * WORKERS * batch
    usable = total // (WORKERS * batch) * WORKERS * batch
    passes = [torch.randperm(total, generator=shuffle)[:usable] for _ in range(-(-need // usable))]
    return torch.cat(passes)[:need].view(steps, WORKERS, batch)


def state_of(model: nn.Module) -> State:
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    return State(tensors, dict.fromkeys(tensors, PARAM), {})


def load(model: nn.Module, state: State) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(state.tensors[name])


def pace(optimizer: torch.optim.Optimizer, rate: float, task: Task, step: int, steps: int) -> None:
    """The user's schedule, by the absolute step: constant, or a line to zero."""
    for group in optimizer.param_groups:
        group["lr"] = rate * (1 - step / steps if task.decay else 1)


def rounds(setting: Setting, steps: int) -> Iterator[tuple[int, int]]:
    """(first step, past the last) of each round."""
    at = 0
    while at < steps:
        inner = next(h for until, h in setting.steps if at < until * steps or until == 1)
        yield at, min(steps, at + inner)
        at += inner


def per_step(task: Task, seed: int, steps: int) -> dict[str, float]:
    model, loss, tested, total = task.build(seed)
    optimizer = task.optimizer(model.parameters(), 1)
    rate = optimizer.param_groups[0]["lr"]
    for step, index in enumerate(batches(total, steps, task.batch, seed)):
        pace(optimizer, rate, task, step, steps)
        optimizer.zero_grad()
        loss(model, index.reshape(-1)).backward()
        optimizer.step()
    sent = 4 * sum(p.numel() for p in model.parameters()) * steps
    return {"loss": tested(model), "up": sent, "down": sent}


def norm_rate(base: State, contributions: Sequence[Contribution], cap: float) -> float:
    """The rate at which the mean change is as long as the workers' changes are (root mean square)."""
    own, together = 0.0, 0.0
    for name in base.tensors:
        deltas = torch.stack([c.change.deltas.get(name, torch.zeros_like(base.tensors[name])) for c in contributions])
        own += deltas.double().square().sum().item() / len(contributions)
        together += deltas.mean(0).double().square().sum().item()
    return min(cap, math.sqrt(own / together)) if together else 1.0


def outer_rate(setting: Setting, done: float, base: State, contributions: Sequence[Contribution]) -> float:
    if done >= 1 and setting.last_lr is not None:
        return setting.last_lr
    if isinstance(setting.outer_lr, tuple):
        first, last = setting.outer_lr
        return first + (last - first) * done
    return norm_rate(base, contributions, setting.norm_cap) if isinstance(setting.outer_lr, str) else setting.outer_lr


def mean_inner(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Averages float optimizer state over the workers, rounded to bfloat16; returns the bytes that one worker sends."""
    sent = 0
    states = [[s for p in o.param_groups[0]["params"] if (s := o.state.get(p))] for o in optimizers]
    for slots in zip(*states, strict=True):
        for key, value in slots[0].items():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                together = torch.stack([s[key].to(torch.bfloat16).float() for s in slots]).mean(0).to(torch.bfloat16)
                for s in slots:
                    s[key].copy_(together)
                sent += 2 * value.numel()
    return sent


def at_border(optimizers: Sequence[torch.optim.Optimizer], border: str) -> None:
    """What a new loop entry makes of optimizer state that workers don't keep."""
    last = optimizers[-1].param_groups[0]["params"]
    for optimizer in optimizers:
        if border == "reset":
            optimizer.state.clear()
            continue
        for mine, theirs in zip(optimizer.param_groups[0]["params"], last, strict=True):
            for key, value in optimizers[-1].state[theirs].items():
                if isinstance(value, torch.Tensor) and value.dim():
                    packed = pack_inner(value) if border == "8 bits" else None
                    optimizer.state[mine][key].copy_(value if packed is None else unpack_inner(packed))


def local(task: Task, setting: Setting, seed: int, steps: int) -> dict[str, Any]:
    model, loss, tested, total = task.build(seed)
    base = held = state_of(model)
    outer = OuterState()
    up = down = 0
    optimizers = []
    workers = []
    for _ in range(WORKERS):
        worker, *_ = task.build(seed)
        workers.append(worker)
        optimizers.append(task.optimizer(worker.parameters(), setting.inner_lr))
    lr = optimizers[0].param_groups[0]["lr"]
    left: list[dict[str, torch.Tensor]] = [{} for _ in workers]
    index = batches(total, steps, task.batch, seed)
    summed: dict[str, torch.Tensor] = {}
    averaged, rates, merges = 0, [], 0
    for start, end in rounds(setting, steps):
        contributions = []
        for w, (worker, optimizer) in enumerate(zip(workers, optimizers, strict=True)):
            load(worker, held)
            if setting.inner == "reset":
                optimizer.state.clear()
            tail, kept = torch.zeros(()), max(1, round((end - start) * setting.tail))
            for step in range(start, end):
                pace(optimizer, lr, task, step, steps)
                optimizer.zero_grad()
                loss(worker, index[step, w]).backward()
                optimizer.step()
                if step >= end - kept:
                    tail = tail + torch.nn.utils.parameters_to_vector(worker.parameters()).detach() / kept
            torch.nn.utils.vector_to_parameters(tail, worker.parameters())
            data, left[w] = encode_change(held, state_of(worker), bits=setting.up, residual=left[w], include_inner=False)
            up += len(data)
            change = decode_change(data, held, max_bytes=MAX_BYTES)
            contributions.append(Contribution(str(w), (end - start) * task.batch, start * WORKERS + w, change))
        rate = outer_rate(setting, end / steps, held, contributions)
        rates.append(round(rate, 3))
        config = StrategyConfig(name="local", solo=False, outer_lr=rate, outer_momentum=setting.momentum, bits=setting.up)
        base, outer = merge(base, contributions, config, outer)
        merges += 1
        if setting.border != "own" and end % setting.entry == 0 and end < steps:
            at_border(optimizers, setting.border)
        if setting.inner == "mean" and end < steps:
            sent = mean_inner(optimizers)
            up, down = up + sent * WORKERS, down + sent
        if end < steps:
            data, _ = encode_change(held, base, bits=setting.down, include_inner=False)
            down += len(data)
            change = decode_change(data, held, max_bytes=MAX_BYTES)
            held, _ = merge(held, [Contribution("hub", 1, 0, change)], SEND)
            if setting.down == 32:
                base = held
        if setting.average and end > steps * (1 - setting.average):
            averaged += 1
            summed = {n: summed.get(n, 0) + t for n, t in base.tensors.items()}
    result: dict[str, Any] = {"up": up / WORKERS, "down": down, "merges": merges, "rates": rates}
    if averaged > 1:
        load(model, base)
        result["last_loss"] = tested(model)
        base = replace(base, tensors={n: t / averaged for n, t in summed.items()})
    load(model, base)
    return {"loss": tested(model), **result}


def run(task: str, length: str, seed: int, setting: Setting) -> dict[str, Any]:
    started, steps = time.process_time(), TASKS[task].steps * LENGTHS[length]
    result = local(TASKS[task], setting, seed, steps) if setting.steps else per_step(TASKS[task], seed, steps)
    return {"task": task, "length": length, "seed": seed, "setting": asdict(setting), **result, "cpu_s": time.process_time() - started}


def edges(task: Task) -> tuple[int, int]:
    """Bytes of a worker's link that per-step sync and local steps share or lack: the first version down; optimizer state up at the end."""
    model, loss, *_ = task.build(0)
    optimizer = task.optimizer(model.parameters(), 1)
    base = state_of(model)
    loss(model, torch.arange(task.batch)).backward()
    optimizer.step()
    load(model, base)
    inner = {f"{i}/{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items() if isinstance(v, torch.Tensor) and v.dim()}
    new = State({**base.tensors, **inner}, {**base.kinds, **dict.fromkeys(inner, INNER)}, {})
    return len(base.to_bytes()), len(encode_change(base, new, bits=4, include_inner=True)[0])


class Results:
    """Runs by what was run, in a file if one is named; a setting's name doesn't count. `shown`: runs that aren't there stay away."""

    def __init__(self, path: Path | None, *, shown: bool = False) -> None:
        self._path, self._shown = path, shown
        self._runs: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path and path.exists() else []:
            found = json.loads(line)
            self._runs[_key(found["task"], found["length"], found["seed"], found["setting"])] = found

    def get(self, task: str, length: str, seed: int, setting: Setting) -> dict[str, Any] | None:
        key = _key(task, length, seed, asdict(setting))
        if key not in self._runs and not self._shown:
            self._runs[key] = run(task, length, seed, setting)
            if self._path:
                with self._path.open("a") as file:
                    file.write(json.dumps(self._runs[key]) + "\n")
        return self._runs.get(key)


def _key(task: str, length: str, seed: int, setting: dict[str, Any]) -> str:
    """What tells a run from others: only what isn't a setting's default, so that a new field leaves known runs known."""
    changed = {k: v for k, v in setting.items() if k != "name" and json.dumps(v) != json.dumps(getattr(PER_STEP, k))}
    return json.dumps([task, length, seed, changed], sort_keys=True)


def table(task: str, length: str, seeds: Sequence[int], settings: Sequence[Setting], results: Results) -> None:
    """Prints a row a setting: how many times fewer bytes than per-step sync, up, down and in all; the loss against it, seed by seed."""
    base = {seed: found for seed in seeds if (found := results.get(task, length, seed, PER_STEP))}
    if not base:
        return
    first, last = edges(TASKS[task])
    parameters, steps = base[min(base)]["up"] // 4, TASKS[task].steps * LENGTHS[length]
    loss = mean(found["loss"] for found in base.values())
    print(f"\n{task}, {length}: {steps} steps of {TASKS[task].batch} samples a worker, {parameters // steps:,} parameters; ", end="")
    print(f"per-step fp32 ends at {loss:.4f} on held-out samples")
    print("| setting | up | down | with start and end | loss against per-step | seeds |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for setting in settings:
        found = {seed: one for seed in base if (one := results.get(task, length, seed, setting))}
        if not found:
            continue
        gaps = [100 * (one["loss"] / base[seed]["loss"] - 1) for seed, one in found.items()]
        whole, one = base[min(base)], found[min(found)]
        up, down = whole["up"] / one["up"], whole["down"] / one["down"]
        in_all = (whole["up"] + whole["down"] + first) / (one["up"] + one["down"] + first + last)
        spread = f" ± {stdev(gaps) / math.sqrt(len(gaps)):.1f}" if len(gaps) > 1 else ""
        print(f"| {setting.name} | {up:.0f} x | {down:.0f} x | {in_all:.0f} x | {mean(gaps):+.1f} %{spread} | {len(gaps)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes on a worker's link against final loss.")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["mlp", "cnn", "chars"])
    parser.add_argument("--length", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the MLP alone, short, one seed")
    parser.add_argument("--wide", action="store_true", help="also what was tried and left out")
    parser.add_argument("--shown", action="store_true", help="only what FILE holds")
    parser.add_argument("--results", type=Path, help="JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.task, args.length, args.seeds = ["mlp"], ["short"], 1
    results = Results(args.results, shown=args.shown)
    print("Four simulated workers; `up`, `down`: how many times fewer bytes of changes; ± is the standard error over seeds.")
    for task in args.task:
        for length in args.length:
            table(task, length, range(args.seeds), FRONT + (WIDE if args.wide else ()), results)


if __name__ == "__main__":
    main()
