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
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from bench.common.loss_settings import FRONT, PER_STEP, WIDE, Setting
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
        yield at, min(steps, at + max(1, inner))
        at += max(1, inner)


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


def averages(setting: Setting, at: int, steps: int) -> bool:
    """Whether gradients are averaged at that step."""
    return next(h for until, h in setting.steps if at < until * steps or until == 1) == 0


class Gradients:
    """Averaged at each step, compressed both ways with error feedback, for replicas that stay the same."""

    def __init__(self, base: State, bits: int) -> None:
        self._zeros = State({n: torch.zeros_like(t) for n, t in base.tensors.items()}, base.kinds, {})
        self._bits = bits
        self._left: list[dict[str, torch.Tensor]] = [{} for _ in range(WORKERS + 1)]  # the hub's is the last

    def _sent(self, gradients: dict[str, torch.Tensor], sender: int) -> tuple[int, dict[str, torch.Tensor]]:
        new = State(gradients, self._zeros.kinds, {})
        data, self._left[sender] = encode_change(
            self._zeros, new, bits=self._bits, residual=self._left[sender] if self._bits != 32 else None, include_inner=False
        )
        change = decode_change(data, self._zeros, max_bytes=MAX_BYTES)
        return len(data), {n: change.deltas.get(n, change.values.get(n, zero)) for n, zero in self._zeros.tensors.items()}

    def step(self, workers: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, int]:
        """One step of all; bytes up (of all) and down (to one)."""
        sent = [self._sent({n: p.grad.clone() for n, p in w.named_parameters() if p.grad is not None}, i) for i, w in enumerate(workers)]
        mean_of = {n: torch.stack([g[n] for _, g in sent]).mean(0) for n in self._zeros.tensors}
        down, together = self._sent(mean_of, WORKERS)
        for worker, optimizer in zip(workers, optimizers, strict=True):
            for name, p in worker.named_parameters():
                p.grad = together[name].clone()
            optimizer.step()
        return sum(size for size, _ in sent), down


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
    gradients = Gradients(base, setting.gradients)
    for start, end in rounds(setting, steps):
        contributions = []
        if averages(setting, start, steps):
            for w, (worker, optimizer) in enumerate(zip(workers, optimizers, strict=True)):
                pace(optimizer, lr, task, start, steps)
                optimizer.zero_grad()
                loss(worker, index[start, w]).backward()
            sent_up, sent_down = gradients.step(workers, optimizers)
            up, down = up + sent_up, down + sent_down
            base = held = state_of(workers[0])
            continue
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
