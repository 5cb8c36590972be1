"""hivemind: local steps, and its DecentralizedAverager over the parameters every `inner_steps` steps."""

from __future__ import annotations

import multiprocessing

import hivemind
import torch
import torch.distributed as dist
import work

ROUND_S = 60.0


def main(rank: int, settings: dict) -> None:
    multiprocessing.set_start_method("fork", force=True)  # its DHT and averager are processes that can't be pickled
    dist.init_process_group("gloo")
    job = work.Work(settings, rank)
    first = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"]) if rank == 0 else None
    known = [[str(a) for a in first.get_visible_maddrs()] if first else None]
    dist.broadcast_object_list(known, src=0)
    dht = first or hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=known[0])
    parameters = list(job.model.parameters())
    averager = hivemind.averaging.DecentralizedAverager(
        [p.detach().clone() for p in parameters],
        dht,
        prefix="bench",
        target_group_size=settings["workers"],
        min_group_size=settings["workers"],
        min_matchmaking_time=1.0,
        start=True,
    )
    dist.barrier()
    job.begin()
    steps = 0
    for epoch in range(settings["epochs"]):
        for x, y in job.batches(epoch):
            job.optimizer.zero_grad()
            job.loss(job.model, x, y).backward()
            job.optimizer.step()
            steps += 1
            if steps % settings["inner_steps"] == 0:
                with averager.get_tensors() as averaged, torch.no_grad():
                    for mine, shared in zip(parameters, averaged, strict=True):
                        shared.copy_(mine)
                if averager.step(timeout=ROUND_S) is None:
                    raise RuntimeError("no group was found in time")
                with averager.get_tensors() as averaged, torch.no_grad():
                    for mine, shared in zip(parameters, averaged, strict=True):
                        mine.copy_(shared)
        if rank == 0:
            job.tested()
    if rank == 0:
        job.tell()
    dist.barrier()
    averager.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    work.ranks(main)
