"""The versions that a worker's leases begin from: whole, or by steps from the one that it holds (training/downlink.py)."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import CodecError
from ..core.parts import Buffer
from ..core.state import State
from .transfer import again_if_gone

log = logging.getLogger(__name__)

RUNS_KEPT = 2
MAX_STATE_BYTES = 64 << 30


@dataclass(frozen=True)
class Held:
    """A version of a run as this worker has it: near the hub's, and the same on all workers of that digest."""

    version: int
    digest: bytes
    state: State


class Versions:
    """What this worker holds, by run."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Held] = OrderedDict()

    def get(self, ask: Callable[..., Mapping[str, Any]], whole: Callable[[Any], Buffer], run_id: str, version: int) -> State:
        """The version. `ask(op, **request)` asks the hub: once, and again for the whole where steps don't lead to what the hub says.
        `whole` fetches what was announced."""
        return again_if_gone(lambda: self._get(ask, whole, run_id, version))

    def _get(self, ask: Callable[..., Mapping[str, Any]], whole: Callable[[Any], Buffer], run_id: str, version: int) -> State:
        held = self._held.get(run_id)
        if held is not None:
            answer = ask("depin_version", run=run_id, version=version, have={"version": held.version, "digest": held.digest})
            if "steps" in answer:
                if (state := self._stepped(held, version, answer, whole)) is not None:
                    self._keep(run_id, Held(version, answer["digest"], state))
                    return state
                del self._held[run_id]
                answer = ask("depin_version", run=run_id, version=version)
        else:
            answer = ask("depin_version", run=run_id, version=version)
        state = State.from_bytes(whole(answer["state"]), max_bytes=MAX_STATE_BYTES)
        if digest := answer.get("digest"):
            self._keep(run_id, Held(version, digest, state))
        return state

    def _stepped(self, held: Held, version: int, answer: Mapping[str, Any], whole: Callable[[Any], Buffer]) -> State | None:
        from ..training.downlink import apply_step, digest_of

        state = held.state
        try:
            for data in answer["steps"]:
                state = apply_step(state, whole(data), max_bytes=MAX_STATE_BYTES)
        except CodecError as error:
            log.warning("a step to version %d doesn't fit: %s", version, error.message)
            return None
        if digest_of(state) != answer["digest"]:
            log.warning("the steps to version %d lead elsewhere; it is asked for whole", version)
            return None
        return state

    def _keep(self, run_id: str, held: Held) -> None:
        self._held[run_id] = held
        self._held.move_to_end(run_id)
        while len(self._held) > RUNS_KEPT:
            self._held.popitem(last=False)
