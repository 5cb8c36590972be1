"""The worker half: runs a lease's iterations on real tensors and logs what the notebook half will need.

Runs on workers (and in the kernel for the probe). It opens a program, which only the kernel writes; nothing of what it returns is
ever opened as anything but data.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ...core.codec import encode
from ...core.lease import EntrySpec, Lease
from ...core.memory import out_of_memory
from ...core.state import State
from .. import output
from ..paths import placed, write
from ..ship.devices import following
from ..ship.objects import Roots, seed_iteration
from ..ship.program import Program, open_program
from ..source import unpack
from ..split.expressions import RUNTIME
from ..split.instrument import Instrument
from ..split.rewrite import ITEM
from .entries import RAISE
from .failures import described
from .left import pack_left
from .recorder import GangAborted, Recorder
from .statements import LeaveLoop

_STEP_STRIDE = 1000  # backward passes an iteration at most, in a gang's step numbers


Reduce = Callable[[int, int, list[torch.Tensor | None]], list[torch.Tensor | None]]


@dataclass
class Outcome:
    """What a lease came to. `exit`: how the body left the loop ("" if it didn't); `left`: codec bytes of the names left behind."""

    done: int = 0
    logs: list[bytes] = field(default_factory=list)
    left: bytes = b""
    exit: str = ""
    losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False


class WorkerHalf:
    """One program, opened: loads a state, runs leases, reads the state back. `blob` fetches bytes by digest."""

    def __init__(self, program: bytes, blob: Callable[[str], bytes]) -> None:
        self.program = open_program(program, blob)
        self.env = self.program.env
        self.roots = self.program.roots
        self.recorder = Recorder(self.program)
        self.code = compile_body(self.program)
        _track_steps(self.roots)
        self.recorder.owned.update({id(self.env[name]): self.env[name] for name in self.program.owned})
        self.keeps_errors = False  # for `%depin debug`: the exception itself, with its frames

    def load(self, state: State) -> None:
        """Puts a version into the objects (and, in a solo run, into the generators)."""
        self.roots.write(state, self.env, rng=self.program.solo)
        for name in self.program.remote:
            self.recorder.own(self.env.get(name))

    def state(self) -> State:
        """Everything that training changed, as of now."""
        return self.roots.read(self.env, rng=self.program.solo)

    def run(
        self,
        lease: Lease,
        spec: EntrySpec,
        *,
        go: Callable[[], bool] = lambda: True,
        paced: Callable[[float], None] = lambda seconds: None,
        reduce: Reduce | None = None,
    ) -> Outcome:
        """Runs the lease's units in order.

        `go` is asked before each iteration; False stops it (`Outcome.stopped`). `paced` is told each iteration's seconds of computing.
        `reduce(step, samples, gradients)` returns the gang's mean gradients; it raises GangAborted when the gang is no more.
        """
        outcome, program, data = Outcome(), self.program, None
        first = lease.units[0].index
        if not program.solo and not lease.gang:
            self._advance_schedulers(first - lease.base_iteration)
        with self._surroundings(spec) as losses, self._reducing(reduce) as position, following(program.devices):
            for place, unit in enumerate(lease.units):
                if not go():
                    outcome.stopped = True
                    break
                if not program.solo:
                    seed_iteration(spec.seed, unit.index)
                position[:] = [lease.groups[place] * _STEP_STRIDE if lease.gang else 0, unit.samples]
                start = time.perf_counter()
                data = unpack(unit.data)
                outcome.exit = self._iteration(unit.index, data)
                seconds = time.perf_counter() - start
                outcome.seconds += seconds
                outcome.done += 1
                outcome.logs.append(encode([self.recorder.turn, self.recorder.log]))
                if losses:
                    outcome.losses.append((unit.index, sum(losses) / len(losses)))
                    losses.clear()
                paced(seconds)
                if outcome.exit:
                    break
            last = lease.final or bool(outcome.exit) or program.opener.may_be_last(data)
            outcome.left = self._left(final=last)
        return outcome

    def _iteration(self, index: int, data: Any) -> str:
        program, recorder, env = self.program, self.recorder, self.env
        recorder.start()
        for path, (base, step) in program.counters.items():
            write(env, path, base + step * (index - program.first))
        env[RUNTIME] = recorder
        recorder.flow = "next"
        turn = -1  # the item's making comes before the body: so does what it raises
        try:
            recorder.inside = 1
            try:
                env[ITEM] = program.opener.open(data, index, recorder.own)
            finally:
                recorder.inside = 0
            turn = recorder.turn
            exec(self.code, env)  # the user's own loop body, on the machine that was given it
        except LeaveLoop:
            return "return"
        except GangAborted:
            raise
        except BaseException as error:
            if out_of_memory(error):
                raise  # the machine's, not the body's: the lease is another one's
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # the probe's user interrupts; on a worker leases run in threads of their own, and it is the body's
            recorder.error = error if self.keeps_errors else None
            recorder.log.append([turn if turn < 0 else recorder.turn, 0, RAISE, described(error)])
            return "error"
        return "" if recorder.flow == "next" else recorder.flow

    def _left(self, *, final: bool) -> bytes:
        """Device-side names that the loop leaves behind, by value: all at the end, else those that only some iterations assign."""
        names = (*self.program.stored, *self.program.owned) if final else self.program.conditional
        found = {n: self.env[n] for n in names if n in self.env and self.recorder.touches(self.env[n])}
        found.update(placed(self.env, self.program.placed, self.recorder.touches) if final else {})
        return pack_left(found, self.roots.modules)

    def _advance_schedulers(self, steps: int) -> None:
        """Per-batch schedulers stand where the whole loop would have them, not where this worker's share does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for label in self.program.stepped:
                for _ in range(max(0, steps)):
                    self.roots.schedulers[label].step()

    @contextlib.contextmanager
    def _surroundings(self, spec: EntrySpec) -> Iterator[list[float]]:
        """Takes up what the body says, sets the kernel's numeric flags, and notes each loss that `backward` is called on."""
        losses: list[float] = []
        backward, threads = torch.Tensor.backward, torch.get_num_threads()

        def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            if tensor.numel() == 1:
                losses.append(float(tensor.detach()))
            backward(tensor, *args, **kwargs)

        flags = self.program.flags
        torch.Tensor.backward = noted  # type: ignore[method-assign,assignment]
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, flags["dtype"]))
        torch.set_float32_matmul_precision(flags["matmul"])
        if self.program.solo:
            torch.set_num_threads(flags["threads"])
        try:
            self.recorder.begin_lease()
            with output.listening(self.recorder.said, flags):
                yield losses
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
            torch.set_default_dtype(dtype)
            if self.program.solo:
                torch.set_num_threads(threads)

    @contextlib.contextmanager
    def _reducing(self, reduce: Reduce | None) -> Iterator[list[int]]:
        """Averages gradients over the gang when a backward pass ends, as DistributedDataParallel does: before clipping and scalers."""
        position = [0, 1]
        if reduce is None:
            yield position
            return
        parameters, queued = self.roots.trainable(), [False]
        sparse = self.roots.sparse()

        def average() -> None:
            queued[0] = False
            means = reduce(position[0], position[1], [p.grad for p in parameters])
            position[0] += 1
            for parameter, mean in zip(parameters, means, strict=True):
                if mean is not None and (
                    id(parameter) in sparse or (parameter.grad is not None and parameter.grad.is_sparse)
                ):  # its optimizer may take nothing else
                    parameter.grad = mean.to(parameter.device).to_sparse(1)
                elif mean is not None and parameter.grad is None:
                    parameter.grad = mean.to(parameter.device)
                elif mean is not None:
                    parameter.grad.copy_(mean)  # type: ignore[union-attr]

        def hook(_: torch.Tensor) -> None:
            if not queued[0]:
                queued[0] = True
                torch.autograd.Variable._execution_engine.queue_callback(average)

        handles = [p.register_post_accumulate_grad_hook(hook) for p in parameters]
        try:
            yield position
        finally:
            for handle in handles:
                handle.remove()


def compile_body(program: Program) -> Any:
    """The body as code for a namespace of its own: run once, with the item bound to the loop's own target."""
    loop = program.loop
    instrument = Instrument(worker=True)
    statements = instrument.target(loop.target, ITEM, loop) + instrument.body(loop.body)
    once = ast.parse(f"for __depin_once__ in {RUNTIME}.once():\n    pass\nelse:\n    {RUNTIME}.flow = 'next'").body[0]
    assert isinstance(once, ast.For)
    once.body = statements
    return compile(ast.fix_missing_locations(ast.Module(body=[once], type_ignores=[])), program.filename, "exec", dont_inherit=True)


def _track_steps(roots: Roots) -> None:
    """Schedulers ask whether their optimizer has stepped: what they had put on its `step` doesn't travel, so it is put there again."""

    def tracked(optimizer: Any) -> Any:
        step = optimizer.step

        @functools.wraps(step)
        def counted(*args: Any, **kwargs: Any) -> Any:
            optimizer._opt_called = True
            return step(*args, **kwargs)

        counted._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
        return counted

    for optimizer in {id(o): o for o in (getattr(s, "optimizer", None) for s in roots.schedulers.values())}.values():
        if optimizer is not None and not hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            optimizer.step = tracked(optimizer)
