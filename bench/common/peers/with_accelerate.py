"""Hugging Face accelerate: DDP over gloo, averaging gradients at every step."""

from __future__ import annotations

import work
from accelerate import Accelerator


def main(rank: int, settings: dict) -> None:
    accelerator = Accelerator(cpu=True)
    job = work.Work(settings, rank)
    model, optimizer = accelerator.prepare(job.model, job.optimizer)
    accelerator.wait_for_everyone()
    job.begin()
    for epoch in range(settings["epochs"]):
        for x, y in job.batches(epoch):
            optimizer.zero_grad()
            accelerator.backward(job.loss(model, x, y))
            optimizer.step()
        if rank == 0:
            job.tested()
    if rank == 0:
        job.tell()
    accelerator.end_training()


if __name__ == "__main__":
    work.ranks(main)
