"""What every peer trains, and how it says what came of it. Needs torch and scikit-learn only: it also runs in the peers' environment."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import tasks


class Work:
    """The task on one of `workers` ranks: its own half of each epoch's shuffle, drawn alike everywhere; `tested` keeps the loss."""

    def __init__(self, config: dict[str, Any], rank: int = 0) -> None:
        torch.set_num_threads(1)
        self.config, self.rank = config, rank
        self.space = tasks.digits(epochs=config["epochs"], batch=config["batch"], hidden=config["hidden"], seed=config["seed"]).namespace()
        self.model, self.optimizer = self.space["model"], self.space["opt"]
        self.held_out: list[float] = []
        self.at_s: list[float] = []
        self.begun_s = time.perf_counter()

    def begin(self) -> None:
        self.begun_s = time.perf_counter()

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's batches of the epoch; every rank has as many, so the last ones may be left out."""
        data = self.space["loader"].dataset
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1000 * self.config["seed"] + epoch))
        batches = order.split(self.config["batch"])
        workers = self.config["workers"]
        for index in batches[self.rank : len(batches) // workers * workers : workers]:
            yield data[index]

    def loss(self, model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    def tested(self) -> None:
        """After an epoch: the held-out loss, and the seconds since `begin`."""
        self.held_out.append(self.space["test_loss"]())
        self.at_s.append(time.perf_counter() - self.begun_s)

    def tell(self) -> None:
        """Hands the figures to the benchmark."""
        Path(self.config["out"]).write_text(json.dumps({"held_out": self.held_out, "at_s": self.at_s}))


def config() -> dict[str, Any]:
    return json.loads(sys.argv[1])


def ranks(main: Callable[[int, dict[str, Any]], None]) -> None:
    """Runs `main(rank, config)` in as many processes as there are workers, with torch.distributed's variables set."""
    settings = config()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(settings["workers"])}
    torch.multiprocessing.spawn(_rank, (main, settings), nprocs=settings["workers"])


def _rank(rank: int, main: Callable[[int, dict[str, Any]], None], settings: dict[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    main(rank, settings)
