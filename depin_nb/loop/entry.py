"""One entry of a leased loop, from its `for` to its end: open, feed, replay, and load the merged weights into the user's own objects."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.codec import decode
from ..core.errors import ReplayError
from ..core.lease import EntrySpec, Unit
from ..core.state import CARRIED, State
from .capture import Shipment
from .contract import Entering, Part
from .generators import Generators
from .objects import write_rng
from .opening import facts_of, passes_of, probe_entry, ship_entry
from .replay import MAX_LOG_BYTES, Replayer
from .source import Source, holds_remote, pack
from .split import RUNTIME

if TYPE_CHECKING:
    from .leasing import Loops


class Entry:
    """One entry of one leased loop; the context manager and the iterable of the rewritten `for`."""

    def __init__(self, loops: Loops, number: int, iterable: Any, frame: types.FrameType, before: Generators) -> None:
        self.loops, self.number, self.site = loops, number, loops.sites[number]
        self.frame = frame
        self._before = before
        self.source = Source(iterable)
        self.replayer = Replayer(loops.callees, loops.namespace)
        self.drawn: dict[int, tuple[Any, int]] = {}  # units handed out and not yet replayed
        self.first = self.given = 0  # first iteration of this entry at the hub; how many have been drawn
        self.replayed = 0
        self.opened = False
        self._left: dict[str, Any] = {}
        self._carried: dict[str, Any] = {}
        self._exit = ""
        self._raising: bytes | None = None
        self.shipment: Shipment | None = None

    # --- the frame ------------------------------------------------------------------------------------

    @property
    def in_cell(self) -> bool:
        return self.frame.f_locals is self.frame.f_globals

    def resolve(self, name: str) -> Any:
        """A name as the loop's frame sees it now."""
        if name in self._carried:
            return self._carried[name]
        for space in (self.frame.f_locals, self.frame.f_globals):
            if name in space:
                return space[name]
        raise KeyError(name)

    def __enter__(self) -> Entry:
        try:
            if self.source.peek() is None:
                return self
            self.source.watch_draw()
            self.frame.f_globals[RUNTIME] = self.replayer
            self._open()
        except BaseException:
            if not self.opened:  # refused, or only planned: then nothing was drawn
                self._before.restore()
            raise
        return self

    def has(self, name: str, names: dict[str, Any]) -> bool:
        """Whether a worker's value replaces what the notebook half has under `name`."""
        return name in self._left and holds_remote(names.get(name))

    def left(self, name: str) -> Any:
        return self._left[name]

    # --- opening ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Ships the loop as it stands now and opens an entry at the hub; also after a solo worker was lost."""
        facts = facts_of(self)
        loops, source = self.loops, self.source
        total = source.length
        solo_reason = facts.solo[0] if facts.solo else None
        samples = (source.peek() or next(iter(self.drawn.values()), (None, 1)))[1]
        entering = Entering(self.site, facts, source.note, total, solo_reason, samples, passes_of(self))
        strategy = loops.hub.choose(entering)
        self.shipment = shipment = ship_entry(self, facts, strategy)
        env = {name: self._carried[name] for name in self._carried}
        state = shipment.roots.read({**self.frame.f_locals, **env}, rng=strategy.solo)
        seed = (
            int.from_bytes(np.random.SeedSequence([torch.initial_seed() % 2**63, loops._entries]).generate_state(2).tobytes(), "little")
            >> 1
        )
        if self.number not in loops._probes:
            made = probe_entry(self, shipment, state, strategy, seed)
            loops._probes[self.number] = made
            loops.hub.planned(entering, strategy, shipment, made, state)
            if made.failed is not None:
                self._raising = made.failed
                return
        measured = loops._probes[self.number]
        spec = EntrySpec(
            program="",
            blobs=tuple(shipment.blobs),
            strategy=strategy,
            total=total,
            seed=seed,
            flops_per_iteration=measured.flops,
            seconds_per_iteration=measured.seconds,
            memory_bytes=measured.memory_bytes,
            samples_per_iteration=samples,
            first=self.first,
        )
        want = loops.hub.open(shipment, spec, state)
        self.opened = True
        pending = [self._unit(index) for index in sorted(self.drawn) if index >= self.first]
        if pending:
            want = loops.hub.feed(pending, closed=False)
        self._feed(max(1, want))

    # --- feeding and replaying ------------------------------------------------------------------------------

    def _unit(self, index: int) -> Unit:
        data, samples = self.drawn[index]
        return Unit(index, pack(data), samples)

    def _feed(self, want: int) -> None:
        while want > 0 and not self.source.ended:
            units = []
            for data, samples in self.source.take(want):
                self.drawn[self.given] = (data, samples)
                units.append(self._unit(self.given))
                self.given += 1
            want = self.loops.hub.feed(units, closed=self._closed())
        if self._closed() and not self._told:
            self._told = True
            self.loops.hub.feed([], closed=True)

    _told = False

    def _closed(self) -> bool:
        self.source.peek()
        return self.source.ended

    def __iter__(self) -> Iterator[Any]:
        bar = self.source.bar
        if bar is None:
            return self._items()
        bar.iterable = self._items()
        return iter(bar)

    def _items(self) -> Iterator[Any]:
        if self._raising is not None:
            data, _ = self.source.take(1)[0]
            yield from self._replay(0, self._raising, data)
            raise ReplayError("the probe failed in a way that the notebook half did not repeat", detail="probe")
        while self.opened and not self._finished():
            results = self.loops.hub.results()
            for part in results.parts:
                yield from self._part(part)
            if results.error is not None:
                raise results.error
            if results.state == "solo-lost":
                self._go_on()
            else:
                self._feed(results.want)

    def _finished(self) -> bool:
        return (self._closed() and self.replayed >= self.given) or bool(self._exit)

    def _part(self, part: Part) -> Iterator[Any]:
        if part.first != self.replayed:
            raise ReplayError(f"iteration {self.replayed} is missing", detail=f"got {part.first}")
        self._take_left(part.left)
        self._exit = part.exit
        for log in part.logs:
            data, _ = self.drawn.pop(self.replayed)
            index, self.replayed = self.replayed, self.replayed + 1
            yield from self._replay(index, log, data)
        if part.exit:
            raise ReplayError(f"a worker left the loop by {part.exit}, the notebook did not", detail=part.exit)

    def _replay(self, index: int, log: bytes, data: Any) -> Iterator[Any]:
        self.replayer.begin(log)
        yield self.source.opener.shown(data, index)
        self.replayer.finish()

    def _take_left(self, left: bytes) -> None:
        values = decode(left, max_bytes=MAX_LOG_BYTES) if left else {}
        if type(values) is not dict or not all(type(name) is str for name in values):
            raise ReplayError("the names left behind are malformed", detail="left")
        self._left.update({name: value for name, value in values.items() if name in self._stored_names()})

    def _stored_names(self) -> set[str]:
        return {n.id for n in ast.walk(self.site.loop) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}

    def _go_on(self) -> None:
        """The one worker of a solo entry is gone: the notebook's bookkeeping is exact, so the loop is shipped again from here."""
        state = self.loops.hub.newest()
        self._load(state)
        self._carried = {
            slot.removeprefix("names/"): tensor
            for slot, tensor in state.tensors.items()
            if state.kinds[slot] == CARRIED and slot.startswith("names/")
        }
        self.first, self._told = self.replayed, False
        self._open()

    # --- leaving ----------------------------------------------------------------------------------------------

    def _load(self, state: State) -> None:
        assert self.shipment is not None
        self.shipment.roots.write(state, {}, rng=False)
        write_rng(state)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        space = self.frame.f_globals
        try:
            if self.opened:
                reason = "interrupt" if isinstance(error, KeyboardInterrupt) else "done" if self._finished() and error is None else "exit"
                if error is not None and not isinstance(error, KeyboardInterrupt):
                    reason = "error"
                self._load(self.loops.hub.close(reason))
        finally:
            if space.get(RUNTIME) is self.replayer:
                del space[RUNTIME]
        if self.in_cell:
            for name, value in self._left.items():
                if holds_remote(space.get(name)):
                    space[name] = value
