"""A loop entry that a killed kernel's run did already, wholly or in part: replayed from the journal, nothing of it is computed.

The user's own iterable is drawn as before (from the generators as they stood then), the journalled logs go through the notebook half,
so that prints, sums and histories appear again, and the journalled state is loaded into the user's own objects. An entry that was
under way then goes on as a new one, as after a lost solo worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..core.errors import DepinError, ResumeError
from ..core.lease import EntrySpec, drawn_digest
from ..core.state import BUFFER, COUNTER, PARAM, State
from .opening import facts_of
from .probe import Probe

if TYPE_CHECKING:
    from .contract import Part
    from .entry import Entry


@dataclass(frozen=True)
class Chapter:
    """What the journal has of one loop entry. `number`: its place in the cell's run, from 1; `header`, `where`: the loop as it stood;
    `spec`: what workers were told of it.

    `merged`: iterations whose logs are there, without a gap from 0; `complete`: the loop was over. `generators`: as
    `Generators.to_bytes` gave them before the entry.
    """

    number: int
    header: str
    where: str
    spec: EntrySpec
    generators: bytes = field(repr=False)
    merged: int
    complete: bool


class Past(Protocol):
    """What a resumed run did; the session reads it from the hub."""

    run_id: str

    @property
    def last(self) -> int:
        """The newest loop entry's number; 0 when there is none."""
        ...

    def chapter(self, number: int) -> Chapter | None: ...
    def parts(self, number: int, after: int) -> tuple[Part, ...]:
        """Some merged parts from iteration `after` on, in loop order and without a gap."""
        ...

    def end_state(self, number: int) -> State: ...


class Replay:
    """One chapter, replayed in an entry's place."""

    def __init__(self, past: Past, chapter: Chapter) -> None:
        self.past, self.chapter = past, chapter
        self._state: State | None = None
        self._may_differ = False

    def begin(self, entry: Entry) -> None:
        """Checks that this is the loop of then, before anything is drawn from it or written. Raises ResumeError with what differs."""
        then, here = self.chapter, entry.site
        if here.header() != then.header:
            self._differs(entry, f"the loop is `{here.header()}` and was `{then.header}`")
        if entry.source.length != then.spec.total:
            now, before = _count(entry.source.length), _count(then.spec.total)
            self._differs(entry, f"the loop has {now} iterations in pass {then.number} and had {before}")
        facts, strategy = facts_of(entry), then.spec.strategy
        entry.source.settle(solo=strategy.solo)
        shipment = entry.ship(facts, strategy)
        if facts.solo or not strategy.solo:  # else more workers than then may be here, for which it hasn't been probed
            spec = then.spec
            measured = Probe(spec.flops_per_iteration, spec.seconds_per_iteration, spec.memory_bytes)
            entry.loops._probes.setdefault(entry.number, measured)
        self._state = self.past.end_state(then.number)
        if differs := _differs(shipment.roots.slots(), self._state):
            self._differs(entry, differs)

    def items(self, entry: Entry) -> Iterator[Any]:
        """The iterations of then; for a chapter that wasn't complete, the entry is open afterwards and goes on."""
        at = 0
        while at < self.chapter.merged:
            parts = self.past.parts(self.chapter.number, at)
            if not parts:
                self._differs(entry, f"the logs of pass {self.chapter.number} end at iteration {at}")
            for part in parts:
                self._draw(entry, part)
                yield from entry._part(part)
                at += len(part.logs)
        if not self.chapter.complete and not entry._finished():
            assert self._state is not None
            state, self._state = self._state, None
            entry._go_on(state)
        elif not entry._finished():
            self._differs(entry, f"pass {self.chapter.number} of the loop has more iterations than it had")

    def _draw(self, entry: Entry, part: Part) -> None:
        source, end = entry.source, part.first + len(part.logs)
        while entry.given < end:
            units = source.take(end - entry.given)
            if not units and source.blocked:
                # drawn in step with the worker's generators then, which only the last state has: what is drawn now may be other items
                self._may_differ = True
                source.step()
                continue
            if not units:
                self._differs(entry, f"pass {self.chapter.number} of the loop ends before iteration {end}")
            for data, samples in units:
                entry.drawn[entry.given] = data, samples
                entry.given += 1
        here = [entry._unit(i).data for i in range(part.first, end)]
        same = all(drawn_digest(data) == told for data, told in zip(here, part.drawn, strict=False))
        if not same and not self._may_differ and not self.chapter.complete:
            self._may_differ = True
            warnings.warn(
                f"pass {self.chapter.number} of the loop iterates other items than {self.past.run_id} did (seed what draws them);"
                f" iterations after the first {self.chapter.merged} go on with these",
                RuntimeWarning,
                stacklevel=2,
            )

    def leave(self, entry: Entry, error: BaseException | None) -> None:
        """The loop is over: the state that it ended with goes into the user's objects. An interrupt leaves them as they are."""
        done = error is None and not entry._exit and entry._finished()
        if self._state is not None and not isinstance(error, (KeyboardInterrupt, DepinError)):
            entry._load(self._state)
        entry.source.finish(entry.replayed, done=done)

    def _differs(self, entry: Entry, what: str) -> None:
        raise ResumeError(
            f"this isn't what {self.past.run_id} ran: {what}",
            hint="Run the cells above it as they were then, or run this one without --resume.",
            run_id=self.past.run_id,
            line=entry.site.line,
        )


def replay_of(past: Past | None, number: int) -> Replay | None:
    """The replay of the cell's loop entry `number`; None where it is a new one."""
    chapter = past.chapter(number) if past is not None else None
    return Replay(past, chapter) if past is not None and chapter is not None else None


def refuse_new(past: Past | None, number: int, line: int) -> None:
    """Raises ResumeError for an entry that the run of then didn't open although it opened later ones."""
    if past is not None and number <= past.last and past.chapter(number) is None:
        raise ResumeError(f"{past.run_id} had no iterations in pass {number} of the loop", run_id=past.run_id, line=line)


def _differs(slots: Iterator[tuple[str, str, Any]], state: State) -> str:
    """What the notebook's parameters and buffers have that the state doesn't fit; "" when all do."""
    then = {slot: tensor for slot, tensor in state.tensors.items() if state.kinds[slot] in (PARAM, BUFFER, COUNTER)}
    for slot, _, tensor in slots:
        before = then.pop(slot, None)
        if before is None:
            return f"`{slot}` is new"
        if before.shape != tensor.shape:
            return f"`{slot}` has the shape {tuple(tensor.shape)} and had {tuple(before.shape)}"
    return f"`{next(iter(then))}` is missing" if then else ""


def _count(total: int | None) -> str:
    return "an unknown number of" if total is None else f"{total:,}"
