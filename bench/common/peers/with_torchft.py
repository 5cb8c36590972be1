"""torchft: LocalSGD over gloo, with a lighthouse for the quorum; parameters are averaged every `inner_steps` steps."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
import work
from torchft import Manager, ProcessGroupGloo
from torchft.local_sgd import LocalSGD

LIGHTHOUSE_PORT = 29510  # in a network namespace of its own nobody else has it


def main(rank: int, settings: dict) -> None:
    job = work.Work(settings, rank)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    limit = timedelta(seconds=120)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit),
        load_state_dict=lambda state: job.model.load_state_dict(state["model"]),
        state_dict=lambda: {"model": job.model.state_dict()},
        min_replica_size=settings["workers"],
        use_async_quorum=False,
        timeout=limit,
        quorum_timeout=limit,
        connect_timeout=limit,
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=f"http://127.0.0.1:{LIGHTHOUSE_PORT}",
        replica_id=f"replica_{rank}",
        hostname="127.0.0.1",
    )
    try:
        manager.start_quorum()
        job.begin()
        with LocalSGD(manager, job.model, job.optimizer, sync_every=settings["inner_steps"]):
            for epoch in range(settings["epochs"]):
                for x, y in job.batches(epoch):
                    job.optimizer.zero_grad()
                    job.loss(job.model, x, y).backward()
                    job.optimizer.step()
                if rank == 0:
                    job.tested()
        if rank == 0:
            job.tell()
    finally:
        manager.shutdown()


if __name__ == "__main__":
    binary = str(Path(sys.executable).parent / "torchft_lighthouse")
    command = [
        binary,
        "--min_replicas",
        str(work.config()["workers"]),
        "--bind",
        f"127.0.0.1:{LIGHTHOUSE_PORT}",
        "--join_timeout_ms",
        "1000",
    ]
    lighthouse = subprocess.Popen(command)
    try:
        work.ranks(main)
    finally:
        lighthouse.terminate()
        lighthouse.wait()
