"""Ray Train: TorchTrainer, DDP over gloo in Ray's workers."""

from __future__ import annotations

import os
import sys
import tempfile

os.environ |= {"RAY_agent_register_timeout_ms": "180000", "RAY_USAGE_STATS_ENABLED": "0"}  # it starts slowly on two cores

import ray
import ray.train
import work
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model


def main(settings: dict) -> None:
    rank = ray.train.get_context().get_world_rank()
    job = work.Work(settings, rank)
    model = prepare_model(job.model)
    job.begin()
    for epoch in range(settings["epochs"]):
        for x, y in job.batches(epoch):
            job.optimizer.zero_grad()
            job.loss(model, x, y).backward()
            job.optimizer.step()
        if rank == 0:
            job.tested()
    if rank == 0:
        job.tell()


if __name__ == "__main__":
    settings = work.config()
    ray.init(
        num_cpus=settings["workers"] + 1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            main,
            train_loop_config=settings,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=settings["workers"]),
            run_config=ray.train.RunConfig(storage_path=folder),
        )
        trainer.fit()
    ray.shutdown()
    sys.exit(0)
