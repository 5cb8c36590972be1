"""A hub for unit tests of the loop package: the real worker half, in this process, one after the other."""

import ast
import contextlib
import io
import linecache
import random

import numpy as np
import torch

from depin_nb.core.lease import Lease, StrategyConfig
from depin_nb.core.state import State
from depin_nb.loop.cell import LeasedCell
from depin_nb.loop.contract import Part, Results
from depin_nb.loop.record import WorkerHalf


class InProcessHub:
    """Solo and `sync`; `lose_after` leases the worker is lost once, as a killed process would be."""

    def __init__(self, *, lease=3, lose_after=None, solo=True):
        self.lease, self.lose_after, self.solo = lease, lose_after, solo
        self.plans, self.leases, self.entries, self.probes = [], [], 0, []

    def choose(self, entering):
        self.plans.append(entering)
        return StrategyConfig(solo=self.solo)

    def planned(self, entering, strategy, shipment, probe, state):
        self.probes.append(probe)

    def open(self, shipment, spec, state):
        self.entries += 1
        self.half = WorkerHalf(shipment.program, shipment.blobs.__getitem__)
        self.half.load(State.from_bytes(state.to_bytes()))
        self.state, self.spec, self.queue, self.exited = state, spec, [], False
        return self.lease

    def feed(self, units, *, closed):
        self.queue += units
        self.closed = closed
        return 0 if self.exited else max(0, self.lease - len(self.queue))

    def results(self):
        if self.lose_after is not None and len(self.leases) >= self.lose_after:
            self.lose_after = None
            return Results(state="solo-lost")
        units, self.queue = self.queue[: self.lease], self.queue[self.lease :]
        if not units:
            return Results(want=self.lease)
        final = self.closed and not self.queue
        outcome = self.half.run(Lease(f"l{len(self.leases)}", "r", 0, 0, tuple(units), final=final), self.spec)
        self.leases.append([u.index for u in units[: outcome.done]])
        self.state = State.from_bytes(self.half.state().to_bytes())
        self.exited = bool(outcome.exit)
        return Results((Part(units[0].index, tuple(outcome.logs), outcome.left, outcome.exit),), want=self.lease)

    def newest(self):
        return self.state

    def close(self, reason):
        self.reason = reason
        return self.state


def seed(value=0):
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


def generators():
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]


def _remember(name, text):
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


def local(setup, cell):
    """The cell in this process: its namespace, printed text, generators, and the exception if it raised one."""
    return _run(setup, lambda ns: exec(compile(cell, "<cell>", "exec"), ns))


def leased(setup, cell, **options):
    hub = InProcessHub(**options)
    _remember("<cell>", cell)

    def run(ns):
        LeasedCell(cell, ns, "<cell>").run(hub, lambda tree: exec(compile(ast.fix_missing_locations(tree), "<cell>", "exec"), ns))

    return *_run(setup, run), hub


def _run(setup, run):
    namespace = {"__name__": "__main__"}
    name = f"<setup {hash(setup)}>"
    _remember(name, setup)
    seed()
    exec(compile(setup, name, "exec"), namespace)
    text, error = io.StringIO(), None
    with contextlib.redirect_stdout(text):
        try:
            run(namespace)
        except Exception as raised:
            error = raised
    return namespace, text.getvalue(), generators(), error
