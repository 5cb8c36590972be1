"""Hubs for tests of the loop package, in this process: the real worker halves, one after the other, and the real merge."""

import hashlib
from dataclasses import replace

from depin_nb.core.lease import Lease, StrategyConfig
from depin_nb.core.state import State
from depin_nb.loop.contract import Part, Results
from depin_nb.loop.halves.record import WorkerHalf
from depin_nb.training.compress import decode_change
from depin_nb.training.merge import Contribution, OuterState, merge
from depin_nb.training.strategy import cut
from depin_nb.worker.link import Go
from depin_nb.worker.runner import LeaseRunner

MAX_BYTES = 1 << 30


class _Hub:
    """What both have: queue, plans, blobs by content (as the real hub keeps them), and the worker that is lost once."""

    def __init__(self, *, lose_after):
        self.lose_after = lose_after
        self.plans, self.probes, self.leases, self.blobs = [], [], [], {}
        self.entries, self.reason = 0, ""

    def planned(self, entering, strategy, shipment, probe, state):
        self.probes.append(probe)

    def _opened(self, shipment, spec, state):
        self.entries += 1
        self.blobs.update(shipment.blobs)
        self.spec, self.state = spec, State.from_bytes(state.to_bytes())
        self.queue, self.closed, self.exited = [], False, False

    def _loses(self):
        """Whether the next lease is the one whose worker dies."""
        lost = self.lose_after is not None and len(self.leases) >= self.lose_after
        if lost:
            self.lose_after = None
        return lost

    def newest(self):
        return self.state

    def close(self, reason):
        self.reason = reason
        return self.state


class InProcessHub(_Hub):
    """One worker, `sync`; `lose_after` leases it is lost once, as a killed process would be."""

    def __init__(self, *, lease=3, lose_after=None, solo=True):
        super().__init__(lose_after=lose_after)
        self.lease, self.solo = lease, solo

    def choose(self, entering):
        self.plans.append(entering)
        return StrategyConfig(solo=self.solo)

    def open(self, shipment, spec, state):
        self._opened(shipment, spec, state)
        self.half = WorkerHalf(shipment.program, self.blobs.__getitem__)
        self.half.load(self.state)
        return self.lease

    def feed(self, units, *, closed):
        self.queue += units
        self.closed = closed
        return 0 if self.exited else max(0, self.lease - len(self.queue))

    def results(self):
        if self._loses():
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


class SpreadHub(_Hub):
    """Several workers, `local` as the hub does it: rounds of `inner_steps` iterations a worker, changes as bytes, merged and shown in loop
    order; what is behind an iteration that left the loop is dropped. A loop that the analysis keeps together gets one of the workers.

    `lose_after`: the worker of that lease is lost, and another does it. `keep_together=False`: the analysis isn't asked.
    """

    def __init__(self, workers=3, *, inner_steps=2, bits=32, lose_after=None, keep_together=True):
        super().__init__(lose_after=lose_after)
        self.workers, self.inner_steps, self.bits, self.keep_together = workers, inner_steps, bits, keep_together
        self.versions, self.outer, self.run_entries = {}, OuterState(), {}
        self.runners = {f"w{i}": self._runner() for i in range(workers)}

    def _runner(self):
        return LeaseRunner(self._ask)

    def _ask(self, op, go, *, entry=None, version=None, digest=None, **_):
        if op == "depin_entry":
            return {"spec": self.run_entries[entry].to_dict()}
        if op == "depin_version":
            return {"state": self.versions[version].to_bytes()}
        assert op == "depin_blob", op
        return {"data": self.blobs[digest]}

    def choose(self, entering):
        self.plans.append(entering)
        if entering.solo_reason and self.keep_together:
            return StrategyConfig(inner_steps=self.inner_steps)
        return StrategyConfig(name="local", solo=False, inner_steps=self.inner_steps, bits=self.bits)

    def open(self, shipment, spec, state):
        program = hashlib.sha256(shipment.program).hexdigest()
        self.blobs[program] = shipment.program
        spec = replace(spec, program=program, blobs=tuple(shipment.blobs))
        self._opened(shipment, spec, state)
        self.run_entries[self.entries] = spec
        self.version = len(self.versions)
        self.versions[self.version] = self.state
        self.done = 0
        return self._wanted()

    def _wanted(self):
        return self.inner_steps * (1 if self.spec.strategy.solo else self.workers)

    def feed(self, units, *, closed):
        self.queue += units
        self.closed = closed
        return 0 if self.exited else max(0, 2 * self._wanted() - len(self.queue))

    def results(self):
        solo = self.spec.strategy.solo
        runners = dict(list(self.runners.items())[:1]) if solo else self.runners
        counts = cut(len(self.queue), dict.fromkeys(runners, 1.0), self.spec.strategy)
        contributions, parts = [], []
        base = self.state
        for worker, count in counts.items():
            units, self.queue = self.queue[:count], self.queue[count:]
            final = self.closed and not self.queue
            if self._loses():
                self.runners[worker] = self._runner()
                if solo:
                    return Results(state="solo-lost")
            report = self._lease(worker, units, final)
            if parts and parts[-1].exit:
                continue  # paid, not merged: local iteration had left the loop before
            change = decode_change(report.change, base, max_bytes=MAX_BYTES)
            done = units[: report.done]
            self.leases.append([u.index for u in done])
            contributions.append(Contribution(worker, sum(u.samples for u in done), done[-1].index, change))
            parts.append(Part(units[0].index, tuple(report.logs), report.left, report.exit))
            self.done += len(done)
        if not parts:
            return Results(want=self._wanted())
        self.state, self.outer = merge(base, contributions, self.spec.strategy, self.outer)
        self.version = len(self.versions)
        self.versions[self.version] = self.state
        self.exited = bool(parts[-1].exit)
        return Results(tuple(parts), want=self._wanted())

    def _lease(self, worker, units, final):
        number = len(self.leases)
        lease = Lease(
            f"l{number}-{worker}", "r", self.entries, self.version, tuple(units), final=final, base_iteration=self.spec.first + self.done
        )
        runner = self.runners[worker]
        finished = runner.run(lease, Go())
        assert finished is not None
        runner.accepted(finished)
        return finished.report
