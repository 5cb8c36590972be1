"""Flower: its simulation engine, FedAvg; each round every client takes `inner_steps` steps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

os.environ |= {"RAY_agent_register_timeout_ms": "180000", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}

import flower_client
import work
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

SETTINGS = work.config()
server = ServerApp()


class Rounds(FedAvg):
    """FedAvg that tells its clients where in the epochs a round begins. `a_pass`: rounds an epoch."""

    def __init__(self, a_pass: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=SETTINGS["workers"], min_available_nodes=SETTINGS["workers"])
        self.a_pass = a_pass

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        epoch, part = divmod(server_round - 1, self.a_pass)
        config["epoch"], config["first"], config["settings"] = epoch, part * SETTINGS["inner_steps"], json.dumps(SETTINGS)
        return super().configure_train(server_round, arrays, config, grid)


@server.main()
def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 (Flower calls it so)
    job = work.Work(SETTINGS)
    a_pass = -(-len(list(job.batches(0))) // SETTINGS["inner_steps"])

    def tested(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 0:
            job.begin()
        elif server_round % a_pass == 0:
            job.model.load_state_dict(arrays.to_torch_state_dict())
            job.tested()
        return MetricRecord({"loss": 0.0})

    weights = ArrayRecord(job.model.state_dict())
    Rounds(a_pass).start(grid=grid, initial_arrays=weights, num_rounds=a_pass * SETTINGS["epochs"], evaluate_fn=tested)
    job.tell()


if __name__ == "__main__":
    one_each = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": SETTINGS["workers"], "include_dashboard": False},
    }
    run_simulation(server, flower_client.app, SETTINGS["workers"], backend_config=one_each)
