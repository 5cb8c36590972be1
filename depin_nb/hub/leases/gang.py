"""The meeting of a `sync` gang's ranks: one part of the gradients from each, the weighted mean to all. Decisions: training/allreduce.py."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import Executor
from typing import Any

from depin_nb.core.errors import CodecError
from depin_nb.core.parts import Buffer
from depin_nb.training.allreduce import Gang, OutOfStep, decode_grads, encode_grads, mean_gradients

Grads = list[Any]  # torch.Tensor or None


class GangCall:
    """One gang. `reduce` waits until all ranks that take part are there; `abort` lets all of them go at once with a reason."""

    def __init__(self, gang_id: str, size: int, executor: Executor, max_bytes: int) -> None:
        self.gang_id = gang_id
        self.state = Gang(size)
        self.ended = asyncio.Event()
        self._executor, self._max_bytes = executor, max_bytes
        self._parts: dict[int, dict[int, tuple[float, Grads]]] = {}  # step -> rank -> part
        self._means: dict[int, asyncio.Future[bytes | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def aborted(self) -> str:
        return self.state.aborted

    async def reduce(self, rank: int, step: int, weight: float, data: Buffer) -> bytes | None:
        """The mean as codec bytes, the very same for every rank; None when the gang was given up (`aborted` says why)."""
        loop = asyncio.get_running_loop()
        if self.aborted:
            return None
        try:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not (math.isfinite(weight) and weight >= 0):
                raise CodecError("a rank's weight isn't a number of samples")
            grads = await loop.run_in_executor(self._executor, lambda: decode_grads(data, max_bytes=self._max_bytes))
            self.state = self.state.arrive(rank, step)
        except (CodecError, OutOfStep) as error:
            self.abort(error.message)
            return None
        self._parts.setdefault(step, {})[rank] = (float(weight), grads)
        mean = self._means.setdefault(step, loop.create_future())
        self._average_if_ready()
        return await asyncio.shield(mean)

    def leave(self, rank: int) -> None:
        """The rank has handed in its lease: later steps don't wait for it."""
        self.state = self.state.leave(rank)
        self._average_if_ready()

    def abort(self, reason: str) -> None:
        self.state = self.state.abort(reason)
        self._parts.clear()
        for mean in self._means.values():
            if not mean.done():
                mean.set_result(None)
        self.ended.set()

    def _average_if_ready(self) -> None:
        for step in [s for s in self._parts if self.state.ready(s)]:
            ranks = self._parts.pop(step)
            task = asyncio.get_running_loop().create_task(self._average(step, [ranks[r] for r in sorted(ranks)]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _average(self, step: int, parts: list[tuple[float, Grads]]) -> None:
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._executor, lambda: encode_grads(mean_gradients(parts)))
        except CodecError as error:
            self.abort(error.message)
            return
        if not self._means[step].done():
            self._means[step].set_result(data)
        self._means.pop(step - 1, None)
