"""Before anything is spent: one iteration on copies, in the kernel. It measures, meets the user's mistakes, and checks the split itself."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..core.codec import decode, encode
from ..core.errors import CodecError, RefusedLoop, ReplayError
from ..core.lease import EntrySpec, Lease, StrategyConfig, Unit
from ..core.state import State
from .halves.entries import RAISE
from .halves.failures import rebuilt
from .halves.record import Outcome, WorkerHalf, compile_body
from .halves.replay import Replayer
from .paths import write
from .peak import PeakMemory
from .ship.beside import stays
from .ship.capture import Shipment
from .ship.compiled import uncompiled
from .ship.program import open_program
from .source import unpack
from .split.expressions import RUNTIME
from .split.rewrite import ITEM
from .values import is_value


@dataclass(frozen=True)
class Probe:
    """Figures of one iteration on this machine: FLOPs, seconds, bytes of memory. `failed`: the log of an iteration that raised.

    `unit_bytes`: what a lease carries for it. `keeps`: what the iteration hands to the next one beside weights and buffers, in plain words:
    only one worker can do such a loop.
    """

    flops: int
    seconds: float
    memory_bytes: int
    losses: tuple[float, ...] = ()
    failed: bytes | None = None
    left: bytes = b""  # the names that it left, and (one worker) what it had changed until it raised
    after: State | None = None
    keeps: tuple[str, ...] = ()
    unit_bytes: int = 0
    caveats: tuple[str, ...] = ()  # for the plan


def probe(shipment: Shipment, state: State, unit: Unit, strategy: StrategyConfig, seed: int, namespace: dict[str, Any]) -> Probe:
    """Runs `unit` on copies. Raises RefusedLoop where the notebook half would not show what the worker half did."""
    spec = EntrySpec("", (), strategy, None, seed, 0, 0.0, 0)
    lease = Lease("probe", "", 0, 0, (unit,), base_iteration=unit.index)
    with uncompiled():
        half = WorkerHalf(shipment.program, shipment.blobs.__getitem__)
    half.load(state)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]  # its hooks break torch.autograd.grad inside a loop
    peak = PeakMemory()
    with counter, peak:
        outcome = half.run(lease, spec)
    _refuse_ours(outcome)
    first = half.roots.beside()
    log = outcome.logs[0]
    losses = tuple(loss for _, loss in outcome.losses)
    if outcome.exit == "error":
        after = half.state() if strategy.solo else None
        return Probe(0, outcome.seconds, 0, losses, failed=log, left=outcome.left, after=after)
    trained = half.state().nbytes()  # with what the optimizer made
    _rehearse(shipment, half, log, unit, namespace, outcome.exit)
    half.load(state)
    seconds = half.run(lease, spec).seconds if not outcome.exit else outcome.seconds
    # a worker holds the base version, the objects and the change's state, and what the iteration itself allocates
    memory = 3 * max(state.nbytes(), trained) + sum(map(len, shipment.blobs.values())) + peak.peak_bytes
    keeps = tuple(half.roots.kept_beside(first)) if not outcome.exit else ()
    said = stays(half.roots.marks) if half.roots.marks is not None else ()
    return Probe(counter.get_total_flops(), max(seconds, 1e-6), memory, losses, keeps=keeps, unit_bytes=len(unit.data), caveats=said)


def _rehearse(shipment: Shipment, half: WorkerHalf, log: bytes, unit: Unit, namespace: dict[str, Any], left_by: str) -> None:
    """The self-check: replays the log on another copy and compares every plain name with the worker half's."""
    with uncompiled():
        program = open_program(shipment.program, shipment.blobs.__getitem__)
    loop, env = program.loop, program.env
    code = compile_body(program)
    replayer = Replayer(program.callees, namespace, rehearsal=True)
    replayer.accumulators = frozenset(program.accumulators)
    replayer.theirs = {id(env[name]): env[name] for name in program.owned}
    for path, (base, step) in program.counters.items():
        write(env, path, base + step * (unit.index - program.first))
    env[RUNTIME], env[ITEM] = replayer, program.opener.shown(unpack(unit.data), unit.index)
    try:
        replayer.begin(log)
        exec(code, env)  # the user's own loop body, on a copy of the user's own names
        if not left_by:
            replayer.finish()
    except ReplayError as error:
        raise _refused(loop, str(error.message)) from error
    except Exception as error:
        raise _refused(loop, f"{type(error).__name__}: {error}") from error
    except BaseException:
        if left_by != "return":
            raise
    for name in sorted(set(program.stored) | set(program.accumulators)):
        ours, theirs = env.get(name), half.env.get(name)
        if is_value(ours) and is_value(theirs) and not _same(ours, theirs):
            raise _refused(loop, f"`{name}` would be {ours!r} here and {theirs!r} there", name)


def _refuse_ours(outcome: Outcome) -> None:
    """Raises what the worker half itself refused (a withheld secret, a name that stays here): no mistake of the user's body."""
    entries = decode(outcome.logs[-1])[1] if outcome.exit == "error" else []
    described = entries[-1][3] if entries and entries[-1][2] == RAISE else None
    if isinstance(described, dict) and str(described.get("type", "")).startswith("depin_nb.core.errors."):
        raise rebuilt(described, {})


class _NoModules:
    """Stands in for torch's module tracker: only the total is wanted."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *error: object) -> None: ...


def _same(a: Any, b: Any) -> bool:
    try:
        return encode(_comparable(a)) == encode(_comparable(b))
    except CodecError:
        return True


def _comparable(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, set) else list(value) if isinstance(value, torch.Size) else value


def _refused(loop: ast.For, detail: str, name: str = "") -> RefusedLoop:
    return RefusedLoop(
        f"line {loop.lineno}: this loop's bookkeeping can't be shown exactly as one process would: {detail}",
        line=loop.lineno,
        reason=detail,
        name=name,
        hint="Nothing was run and nothing was spent. Run the cell without %%depin, or simplify what the loop keeps between iterations.",
    )
