"""The steps of opening an entry: read the body's facts as the loop stands now, ship it, probe one iteration."""

from __future__ import annotations

import ast
import random
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.lease import StrategyConfig, Unit
from ..core.state import State
from .analysis.analyse import Facts, analyse
from .find.reach import functions_within, global_names
from .find.syntax import static_length
from .probe import Probe, probe
from .ship.capture import Shipment, ship
from .source import Remote, is_plain_item, pack, standing_in
from .split.expressions import RUNTIME

if TYPE_CHECKING:
    from .entry import Entry


def facts_of(entry: Entry) -> Facts:
    unit = entry.source.peek()
    assert unit is not None or entry.drawn
    data = unit[0] if unit is not None else next(iter(entry.drawn.values()))[0]
    shown = entry.source.opener.shown(data, 0)
    plain = _plain_targets(entry.site.loop.target, shown)
    facts = analyse(entry.site.loop, entry.resolve, plain_target=plain)
    facts.caveats += entry.site.notes
    facts.solo += entry.loops.keeps.get(entry.number, ())
    return facts


def passes_of(entry: Entry) -> int | None:
    """The product of the enclosing loops' lengths, where they are ranges or containers; None where one doesn't tell."""
    passes = 1
    for outer in entry.site.outer:
        length = static_length(outer.iter, entry.resolve) if isinstance(outer, ast.For) else None
        if length is None:
            return None
        passes *= length
    return passes if entry.site.function is None or entry.site.outer else None


def ship_entry(entry: Entry, facts: Facts, strategy: StrategyConfig) -> Shipment:
    names: dict[str, Any] = {}
    for name in (facts.reads | facts.stored) - facts.needless:
        try:
            value = entry.resolve(name)
        except KeyError:
            continue
        if not isinstance(value, Remote) and not name.startswith("__depin_") and not _made_by_an_entry(value):
            names[name] = value
    for function in functions_within(names, entry.site.loop):
        entry.loops.callees.add(function)
    with standing_in(entry.source.stand_ins):
        shipment = _shipped(entry, facts, strategy, names)
    entry.replayer.accumulators = frozenset(facts.accumulators)
    entry.replayer.theirs = {id(names[name]): names[name] for name in shipment.owned}
    entry.replayer.ghosts = {id(value): value for value in shipment.ghosts.values()}
    return shipment


def _shares(entry: Entry, facts: Facts, names: dict[str, Any]) -> bool:
    """Whether on a worker the body's names and the globals of the functions that it calls are one namespace.

    They are where the loop stands in a cell. In a function they may be, so that what a callee declares `global` is seen by the body too,
    unless a local name hides a global one that a callee looks up.
    """
    if entry.in_cell:
        return True
    code, space = entry.frame.f_code, entry.frame.f_globals
    own = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    hiding = {n for n in (facts.reads | facts.stored) & own if n in space and space[n] is not entry.frame.f_locals.get(n)}
    return not (hiding and hiding & global_names(names, entry.site.loop))


def _made_by_an_entry(value: Any) -> bool:
    """A function that an earlier entry of the loop defined in its body; this one defines it again."""
    return isinstance(value, types.FunctionType) and RUNTIME in value.__code__.co_names


def _shipped(entry: Entry, facts: Facts, strategy: StrategyConfig, names: dict[str, Any]) -> Shipment:
    return ship(
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
            "stepped": list(facts.stepped.values()),
            "counters": {path: tuple(each) for path, each in facts.counters.items()},
            "remote": entry.remote(),
            "placed": sorted(facts.placed),
        },
        shared=_shares(entry, facts, names),
        tensors=facts.tensors,
        send=getattr(entry.loops.hub, "send", ()),
    )


def admitted(hub: Any, shipment: Shipment) -> bool:
    """Whether other workers remain than the strategy was chosen for, once it is known what the program needs."""
    admit = getattr(hub, "admit", None)
    return admit is not None and bool(admit(shipment))


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


def may_leave(loop: ast.For) -> bool:
    """Whether the body can leave the loop before its iterable ends, other than by an error of a call."""

    def within(node: ast.AST, inner: bool) -> bool:
        if isinstance(node, (ast.Return, ast.Raise)) or (isinstance(node, ast.Break) and not inner):
            return True
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            return False
        nested = inner or isinstance(node, (ast.For, ast.While))
        return any(within(child, nested) for child in ast.iter_child_nodes(node))

    return any(within(statement, False) for statement in loop.body)


def _plain_targets(target: Any, shown: Any) -> set[str]:
    """Names of the loop's target that hold plain values, seen from one item."""
    if isinstance(target, ast.Name):
        return {target.id} if is_plain_item(shown) else set()
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(shown, (tuple, list)) and len(shown) == len(target.elts):
        return set().union(*(_plain_targets(t, s) for t, s in zip(target.elts, shown, strict=True)))
    return set()
