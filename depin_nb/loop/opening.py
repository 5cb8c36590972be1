"""The steps of opening an entry: read the body's facts as the loop stands now, ship it, probe one iteration."""

from __future__ import annotations

import ast
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.lease import StrategyConfig, Unit
from ..core.state import State
from .analyse import Facts, analyse
from .capture import Shipment, ship
from .probe import Probe, probe
from .reach import add_callees
from .rewrite import ENTRY, ITEM, LOOPS
from .source import Remote, holds_remote, pack
from .split import RUNTIME
from .syntax import static_length

if TYPE_CHECKING:
    from .entry import Entry


def facts_of(entry: Entry) -> Facts:
    unit = entry.source.peek()
    assert unit is not None or entry.drawn
    data = unit[0] if unit is not None else next(iter(entry.drawn.values()))[0]
    shown = entry.source.opener.shown(data, 0)
    plain = _plain_targets(entry.site.loop.target, shown)
    return analyse(entry.site.loop, entry.resolve, plain_target=plain, zeroes_elsewhere=entry.loops.zeroes_elsewhere)


def passes_of(entry: Entry) -> int | None:
    """The product of the enclosing loops' lengths, where they are ranges or containers; None where one doesn't tell."""
    passes = 1
    for outer in entry.site.outer:
        length = static_length(outer.iter, entry.resolve)
        if length is None:
            return None
        passes *= length
    return passes if entry.site.function is None or entry.site.outer else None


def ship_entry(entry: Entry, facts: Facts, strategy: StrategyConfig) -> Shipment:
    names: dict[str, Any] = {}
    for name in facts.reads | facts.stored:
        try:
            value = entry.resolve(name)
        except KeyError:
            continue
        if not isinstance(value, Remote) and name not in (RUNTIME, LOOPS, ENTRY, ITEM):
            names[name] = value
    add_callees(entry.loops.callees, names)
    shipment = ship(
        names=names,
        space=entry.frame.f_globals,
        opener=entry.source.opener,
        callees=entry.loops.callees,
        loop=entry.site.loop,
        filename=entry.site.filename,
        solo=strategy.solo,
        first=entry.first,
        carried=tuple(sorted(facts.carried)),
        grads=facts.grads,
        facts={
            "stored": sorted(facts.stored - facts.accumulators),
            "conditional": sorted(facts.conditional - facts.accumulators),
            "accumulators": sorted(facts.accumulators),
            "stepped": sorted(facts.stepped & set(names)),
            "counters": {k: (names[k], step) for k, (_, step) in facts.counters.items() if k in names},
        },
        shared=entry.in_cell,
    )
    entry.replayer.accumulators = frozenset(facts.accumulators)
    entry.replayer.ghosts = {id(value): value for value in shipment.ghosts.values()}
    return shipment


def probe_entry(entry: Entry, shipment: Shipment, state: State, strategy: StrategyConfig, seed: int) -> Probe:
    unit = entry.source.peek()
    assert unit is not None
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        return probe(shipment, state, Unit(entry.first, pack(unit[0]), unit[1]), strategy, seed, entry.loops.namespace)
    finally:
        torch.set_rng_state(generators[0])
        random.setstate(generators[1])
        np.random.set_state(generators[2])


def _plain_targets(target: Any, shown: Any) -> set[str]:
    """Names of the loop's target that hold plain values, seen from one item."""
    if isinstance(target, ast.Name):
        return set() if holds_remote(shown) else {target.id}
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(shown, (tuple, list)) and len(shown) == len(target.elts):
        return set().union(*(_plain_targets(t, s) for t, s in zip(target.elts, shown, strict=True)))
    return set()
