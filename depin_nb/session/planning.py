"""Makes a plan of what is known when a loop is entered, and says who can't take part. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..backends.base import profile
from ..core.lease import StrategyConfig
from ..core.state import State
from ..loop.contract import Entering
from ..loop.probe import Probe
from ..loop.ship.capture import DATASET, LOOP_DATA, Shipment
from ..metering import price
from ..metering.estimate import FleetDevice, estimate
from ..metering.estimate import Probe as Figures
from ..training.compress import encode_change
from ..training.downlink import encode_step
from .plan import Plan, kinds, size

ASSUMED_ITERATIONS = 100  # for the estimate, where the loop's length isn't known


@dataclass(frozen=True)
class Fitness:
    """What the hub says of its workers and a program, by worker: packages that they lack, that they have in other versions, and
    which of them can't compile, or have too little memory."""

    lacks: dict[str, list[str]] = field(default_factory=dict)
    other: dict[str, list[str]] = field(default_factory=dict)
    uncompiled: tuple[str, ...] = ()
    small: dict[str, int] = field(default_factory=dict)  # bytes of memory that they have
    memory_bytes: int = 0  # that an iteration needs

    def sentences(self) -> tuple[str, ...]:
        """`phone-2 lacks tokenizers`, one for each worker that is left out."""
        return (*(f"{worker} lacks {', '.join(names)}" for worker, names in sorted(self.lacks.items())), *self.too_small())

    def too_small(self) -> tuple[str, ...]:
        """`phone-2 has 4 GB and the loop needs 6 GB`."""
        return tuple(f"{worker} has {size(own)} and the loop needs {size(self.memory_bytes)}" for worker, own in sorted(self.small.items()))

    def caveats(self, workers: Sequence[str], compiled: Sequence[str]) -> list[str]:
        """What differs on workers that take part."""
        said = []
        by_versions: dict[str, list[str]] = {}
        for worker, names in sorted(self.other.items()):
            if worker in workers:
                by_versions.setdefault(", ".join(names), []).append(worker)
        said += [f"{', '.join(who)}: other versions than here: {versions}" for versions, who in by_versions.items()]
        slow = [worker for worker in self.uncompiled if worker in workers]
        if slow and compiled:
            said.append(f"{', '.join(compiled)} runs uncompiled on {', '.join(slow)}: no compiler there")
        return said


def make_plan(
    entering: Entering,
    strategy: StrategyConfig,
    reason: str,
    shipment: Shipment,
    probe: Probe,
    state: State,
    *,
    workers: Sequence[Any],
    caveats: Sequence[str],
    fitness: Fitness,
) -> Plan:
    """The plan of one loop. `workers`: the devices that would take part."""
    change = len(encode_change(_like(state), state, bits=strategy.bits, include_inner=strategy.bits == 32)[0])
    down = state.nbytes() if strategy.down_bits == 32 else len(encode_step(_like(state), state, bits=strategy.down_bits)[0])
    iterations = entering.total or ASSUMED_ITERATIONS
    per_round = max(1, strategy.inner_steps * (1 if strategy.solo else len(workers)))
    figures = Figures(probe.flops, probe.seconds, iterations, -(-iterations // per_round), change, down)
    fleet = [_fleet_device(d.kind) for d in workers if d.simulated] or [
        _fleet_device(k) for k in ("phone", "laptop", "single-board", "phone")
    ]
    roots = shipment.roots
    named: list[tuple[str, str]] = [
        (label, type(obj).__name__)
        for group in (roots.modules, roots.optimizers, roots.schedulers, roots.scalers, roots.tensors)
        for label, obj in group.items()
    ]
    return Plan(
        where=entering.site.where(),
        strategy=strategy,
        reason=reason,
        workers=len(workers),
        iterations=entering.total,
        flops_per_iteration=probe.flops,
        seconds_per_iteration=probe.seconds,
        program_bytes=len(shipment.program),
        blob_bytes=sum(map(len, shipment.blobs.values())),
        state_bytes=state.nbytes(),
        down_bytes=down,
        change_bytes=change,
        stays=shipment.manifest.stays,
        ships=kinds(named),
        caveats=tuple(caveats),
        rows=tuple(estimate(figures, price.load(), fleet=fleet, local_workers=1)),
        unit_bytes=probe.unit_bytes,
        data=_data(entering, shipment),
        lacking=fitness.sentences(),
        manifest=shipment.manifest,
    )


def _data(entering: Entering, shipment: Shipment) -> str:
    """How the data of the iterations reaches a worker."""
    if entering.source_note:
        return entering.source_note
    held = next((item for item in shipment.manifest.items if item.name == LOOP_DATA), None)
    if held is not None and held.kind == DATASET:
        return f"each worker gets what the loop iterates whole and once, {size(held.nbytes)}; leases carry only indices"
    return "leases carry each iteration's own value"


def caveats(entering: Entering, strategy: StrategyConfig, shipment: Shipment, workers: Sequence[Any], fitness: Fitness) -> list[str]:
    """What a user should know before and while it runs, each a sentence."""
    facts, count = entering.facts, len(workers)
    said = [*facts.caveats, *shipment.caveats, *(f"one worker does it all: {reason}" for reason in facts.solo[:1] if count > 1)]
    if entering.source_note:
        said.append(entering.source_note)
    if strategy.name == "sync" and not strategy.solo:
        said.append(f"each step averages {count} iterations: the effective batch is {count * entering.samples} samples")
        if facts.stepped:
            said.append(f"{', '.join(sorted(facts.stepped))} steps once with each of these steps, so {count} times less often")
    said += fitness.caveats([d.worker_id for d in workers], shipment.compiled)
    return said


def _fleet_device(kind: str) -> FleetDevice:
    p = profile(kind)
    return FleetDevice(p.name, p.speed, p.up_mbit_s * 1e6, p.down_mbit_s * 1e6, p.latency_ms / 1e3)


def _like(state: State) -> State:
    """A base that differs from `state` everywhere: for the size of a change before there is one."""
    tensors = {slot: torch.full_like(t, 1) if t.dtype.is_floating_point else t for slot, t in state.tensors.items()}
    return State(tensors, dict(state.kinds), dict(state.plain))
