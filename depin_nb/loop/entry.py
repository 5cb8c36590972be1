"""One entry of a leased loop, from its `for` to its end: open, feed, replay, and load the merged weights into the user's own objects."""

from __future__ import annotations

import ast
import contextlib
import types
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.errors import DepinError, ReplayError
from ..core.lease import EntrySpec, StrategyConfig, Unit
from ..core.state import State
from . import debug
from .contract import Entering, Part
from .debug import Trail
from .generators import Generators
from .halves.byvalue import MAX_STORED_BYTES
from .halves.failures import users_own
from .halves.left import still_absent, unpack_left
from .halves.replay import MAX_LOG_BYTES, Replayer
from .opening import admitted, facts_of, may_leave, passes_of, probe_entry, ship_entry
from .paths import read, split, write
from .resume import Replay, refuse_new
from .ship.capture import Shipment
from .ship.carry import carried_values, refuse_lost
from .ship.hooks import put_back
from .ship.objects import write_rng
from .source import Remote, Source, holds_remote, pack
from .split.expressions import RUNTIME

if TYPE_CHECKING:
    from .analysis.analyse import Facts
    from .leasing import Loops


class Entry:
    """One entry of one leased loop; the context manager and the iterable of the rewritten `for`."""

    ran_out = False  # the rewritten loop sets it when there was no next pass, as its `else` asks

    def __init__(
        self, loops: Loops, number: int, iterable: Any, frame: types.FrameType, before: Generators, replay: Replay | None = None
    ) -> None:
        self.loops, self.number, self.site = loops, number, loops.sites[number]
        self.frame = frame
        self._before, self._replaying = before, replay
        self.turn = loops._entries  # which of the cell's loop entries this is, from 1
        self.source = Source(iterable, before=before, leaves=may_leave(self.site.loop), way=loops.data, elsewhere=loops.elsewhere)
        self.replayer = Replayer(loops.callees, loops.namespace)
        self.drawn: dict[int, tuple[Any, int]] = {}  # units handed out and not yet replayed
        self.first = self.given = 0  # first iteration of this entry at the hub; how many have been drawn
        self.replayed = 0
        self.opened = False
        self._left: dict[str, Any] = {}
        self._carried: dict[str, Any] = {}
        self._histories: set[str] = set()
        self._places: set[str] = set()  # attributes and items that the body gives device-side values
        self._placed: dict[str, Any] = {}
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

    def remote(self) -> list[str]:
        """Names that a lost worker's value goes on under, where the notebook half has none of its own: device-side as a whole."""
        spaces = (self.frame.f_locals, self.frame.f_globals)
        return [name for name in self._carried if any(isinstance(space.get(name), Remote) for space in spaces)]

    def __enter__(self) -> Entry:
        try:
            if self.source.peek() is None:
                return self
            self.frame.f_globals[RUNTIME] = self.replayer
            if self._replaying is not None:
                self._replaying.begin(self)
            else:
                self._open()
        except BaseException:
            if not self.opened:  # refused, or only planned: then nothing was drawn
                self.source.finish(0, done=False)
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
        solo_reason = facts.solo[0] if facts.solo else self._solo_of_source()
        samples = (source.peek() or next(iter(self.drawn.values()), (None, 1)))[1]
        before = self._before.to_bytes() if self.first == 0 else b""
        entering = Entering(self.site, facts, source.note, total, solo_reason, samples, passes_of(self), self.turn, before)
        strategy = loops.hub.choose(entering)
        source.settle(solo=strategy.solo)
        entering = replace(entering, source_note=source.note)
        shipment = self.ship(facts, strategy)
        if admitted(loops.hub, shipment):  # fewer workers than it was chosen for can run it
            strategy = loops.hub.choose(entering)
            shipment = self.ship(facts, strategy)
        env = {name: self._carried[name] for name in self._carried}
        state = shipment.roots.read({**self.frame.f_locals, **env}, rng=strategy.solo)
        seed = (
            int.from_bytes(np.random.SeedSequence([torch.initial_seed() % 2**63, loops._entries]).generate_state(2).tobytes(), "little")
            >> 1
        )
        self._trail = Trail(shipment, state, EntrySpec("", (), strategy, total, seed, 0, 0.0, 0))
        debug.keep(None)
        if self.number not in loops._probes:
            made = probe_entry(self, shipment, state, strategy, seed)
            if made.keeps and not strategy.solo and self.number not in loops.keeps:
                loops.keeps[self.number] = tuple(f"line {self.site.line}: {kept}" for kept in made.keeps)
                self._open()  # one worker must do it: chosen, shipped and probed again
                return
            loops._probes[self.number] = made
            facts.caveats += made.caveats
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
            contiguous=facts.leaves,
        )
        refuse_new(loops.past, self.turn, self.site.line)
        want = loops.hub.open(shipment, spec, state)
        self.opened = True
        pending = [self._unit(index) for index in sorted(self.drawn) if index >= self.first]
        if pending:
            want = loops.hub.feed(pending, closed=False)
        self._feed(max(1, want))

    def ship(self, facts: Facts, strategy: StrategyConfig) -> Shipment:
        """Makes the notebook half ready for what workers do from here on; also for a replay without any."""
        self._histories, self._places = facts.histories, facts.placed
        self.replayer.shared = not strategy.solo
        self.replayer.held.clear()  # the workers' own copies start from what is shipped now
        self.shipment = ship_entry(self, facts, strategy)
        return self.shipment

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
            if not units:
                break  # the next one has to wait for those that are out
            want = self.loops.hub.feed(units, closed=self._closed())
        if self._closed() and not self._told:
            self._told = True
            self.loops.hub.feed([], closed=True)

    _told = False
    _trail: Trail | None = None

    def _step(self) -> None:
        """Draws one unit as local iteration would: with the generators where all earlier iterations left them."""
        write_rng(self.loops.hub.newest())
        self.source.step()
        self._feed(1)

    def _closed(self) -> bool:
        return self.source.over()

    def __iter__(self) -> Iterator[Any]:
        items: Iterator[Any] = self.source.ticking(self._items())
        return items

    def _items(self) -> Iterator[Any]:
        if self._replaying is not None:
            yield from self._replaying.items(self)
        if self._raising is not None:
            data, _ = self.source.take(1)[0]
            made = self.loops._probes[self.number]
            self._take_left(made.left)
            if made.after is not None:
                self._load(made.after)  # as far as the iteration came here
            if self._trail is not None:
                self._trail.passed(self.replayed, data, 1)
            yield from self._replay(self.replayed, self._raising, data)
            raise ReplayError("the probe failed in a way that the notebook half did not repeat", detail="probe")
        while self.opened and not self._finished():
            if self.source.blocked and self.replayed == self.given:
                self._step()
                continue
            results = self.loops.hub.results()
            for part in results.parts:
                yield from self._part(part)
            if results.error is not None:
                raise results.error
            if results.state == "solo-lost":
                self._go_on(self.loops.hub.newest())
            else:
                self._feed(results.want)
        self.source.failed()

    def _finished(self) -> bool:
        return (self._closed() and self.replayed >= self.given) or bool(self._exit)

    def _part(self, part: Part) -> Iterator[Any]:
        if part.first != self.replayed:
            raise ReplayError(f"iteration {self.replayed} is missing", detail=f"got {part.first}")
        self._take_left(part.left)
        self._exit = part.exit
        if self._trail is not None:
            self._trail.part()
        for log in part.logs:
            data, samples = self.drawn.pop(self.replayed)
            if self._trail is not None:
                self._trail.passed(self.replayed, data, samples)
            index, self.replayed = self.replayed, self.replayed + 1
            self.source.passed(self.replayed)
            yield from self._replay(index, log, data)
        if part.exit:
            raise ReplayError(f"a worker left the loop by {part.exit}, the notebook did not", detail=part.exit)

    def _replay(self, index: int, log: bytes, data: Any) -> Iterator[Any]:
        self.replayer.begin(log)
        yield self.source.opener.shown(data, index)
        self.replayer.finish()

    def _take_left(self, left: bytes) -> None:
        modules = self.shipment.roots.modules if self.shipment is not None else {}
        values = unpack_left(left, modules, self.loops.namespace, max_bytes=MAX_LOG_BYTES)
        self._left.update({name: value for name, value in values.items() if name in self._stored_names()})
        self._placed.update({path: value for path, value in values.items() if path in self._places})
        assert self.shipment is not None
        for name in self.shipment.owned:
            if name in values:
                put_back(self.resolve(name), values[name])

    def _place(self, path: str, value: Any) -> None:
        """Puts a worker's value where the notebook half has none of its own."""
        space = {**self.frame.f_globals, **self.frame.f_locals}
        with contextlib.suppress(LookupError, AttributeError, TypeError):
            if holds_remote(read(space, path)):
                write(space, path, value)

    def _stored_names(self) -> set[str]:
        nodes = list(ast.walk(self.site.loop))
        defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
        return defined | {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}

    def _go_on(self, state: State) -> None:
        """The one worker of a solo entry is gone, or a killed kernel's run is resumed: the loop is shipped again from here."""
        self._load(state)
        refuse_lost(state, self._histories)
        for path, value in carried_values(state).items():
            root, steps = split(path)
            if steps:
                write({root: self.resolve(root)}, path, value)
            else:
                self._carried[path] = value
        self.first, self._told = self.replayed, False
        if not self.drawn and self.source.blocked:
            self.source.step()
        if not self._finished():
            self._open()

    def _solo_of_source(self) -> str | None:
        return f"line {self.site.line}: {self.source.solo}" if self.source.solo else None

    # --- leaving ----------------------------------------------------------------------------------------------

    def _tell_absent(self) -> None:
        """Says once what plain objects kept that was too large to come back."""
        names = {**self.frame.f_globals, **self.frame.f_locals}
        absent = [n for n in still_absent(self.replayer.absent.values(), names) if n not in self.loops.told]
        self.replayer.absent.clear()
        if absent:
            self.loops.told.update(absent)
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            warnings.warn(
                f"line {self.site.line}: {', '.join(f'`{name}`' for name in absent[:3])}{more} stayed on the worker: "
                f"a value that a plain object keeps comes back up to {MAX_STORED_BYTES >> 10} kB. "
                "Keep a smaller part of it, or append it to a list",
                stacklevel=3,
            )

    def _finish(self, *, done: bool) -> None:
        self.source.finish(self.replayed, done=done)
        if done and self.source.end_state is not None:
            self.source.end_state.restore()

    def _load(self, state: State) -> None:
        assert self.shipment is not None
        self.shipment.roots.write(state, {}, rng=False)
        write_rng(state)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        space, newest = self.frame.f_globals, None
        try:
            if self.opened:
                reason = "interrupt" if isinstance(error, KeyboardInterrupt) else "done" if self._finished() and error is None else "exit"
                if error is not None and not isinstance(error, KeyboardInterrupt):
                    reason = "error"
                done = self._finished() and not self._exit and error is None
                newest = self.loops.hub.close(reason)
                self._load(newest)
                self._finish(done=done)
            elif self._replaying is not None:
                self._replaying.leave(self, error)
            else:
                self._finish(done=error is None)
        finally:
            if space.get(RUNTIME) is self.replayer:
                del space[RUNTIME]
            names = {**space, **self.frame.f_locals}  # functions that the body defined are the user's own again
            self.loops.callees.originals.restore(names[name] for name in self._stored_names() if name in names)
        for path, value in self._placed.items():
            self._place(path, value)
        if self.in_cell:
            for name, value in self._left.items():
                if holds_remote(space.get(name)):
                    space[name] = value
        self._tell_absent()
        if error is not None:
            users_own(error)
        if isinstance(error, Exception) and not isinstance(error, DepinError) and self._trail is not None:
            debug.keep(self._trail.failed(newest))
