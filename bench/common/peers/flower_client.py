"""Flower's client: it keeps its data, and begins each round with the server's weights and a fresh optimizer, as FedAvg's clients do."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice

import work
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@cache
def job(settings: str, rank: int) -> work.Work:
    return work.Work(json.loads(settings), rank)


@app.train()
def train(message: Message, context: Context) -> Message:
    place = message.content["config"]
    own = job(place["settings"], int(context.node_config["partition-id"]))
    own.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = type(own.optimizer)(own.model.parameters(), **own.optimizer.defaults)
    first, steps = int(place["first"]), 0
    for x, y in islice(own.batches(int(place["epoch"])), first, first + own.config["inner_steps"]):
        optimizer.zero_grad()
        own.loss(own.model, x, y).backward()
        optimizer.step()
        steps += 1
    content = {"arrays": ArrayRecord(own.model.state_dict()), "metrics": MetricRecord({"num-examples": steps * own.config["batch"]})}
    return Message(RecordDict(content), reply_to=message)
