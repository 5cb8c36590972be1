"""One rank of torch DistributedDataParallel (gloo) on a benchmark's task. Each line on the standard input: one pass, timed.

python ddp_rank.py RANK WORLD PORT < ...; the first line is the setup as JSON, each further one asks for a pass; rank 0 answers seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, RandomSampler


def main() -> None:
    rank, world, port = (int(a) for a in sys.argv[1:4])
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    space: dict = {"__name__": "__main__"}
    exec(json.loads(sys.stdin.readline()), space)
    loader = space["loader"]
    share = RandomSampler(loader.dataset, replacement=True, num_samples=len(loader) * loader.batch_size // world)
    own = DataLoader(loader.dataset, batch_size=loader.batch_size, sampler=share)
    for _ in sys.stdin:
        model, optimizer = fresh(space)
        dist.barrier()
        start = time.perf_counter()
        for x, y in own:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        dist.barrier()
        if rank == 0:
            print(time.perf_counter() - start, flush=True)
    dist.destroy_process_group()


def fresh(space: dict) -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    """The task's model as DDP, with an optimizer of the same kind, warm from two steps that don't count."""
    model = DistributedDataParallel(space["model"])
    optimizer = type(space["opt"])(model.parameters(), **space["opt"].defaults)
    x, y = space["X"][:8], space["Y"][:8]
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


if __name__ == "__main__":
    main()
