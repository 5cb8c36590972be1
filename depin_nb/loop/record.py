"""The worker half: runs a lease's iterations on real tensors and logs what the notebook half will need.

Runs on workers (and in the kernel for the probe). It opens a program, which only the kernel writes; nothing of what it returns is
ever opened as anything but data.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.codec import encode
from ..core.lease import EntrySpec, Lease
from ..core.state import State
from .objects import seed_iteration
from .program import Program, open_program
from .rewrite import ITEM
from .runtime import RAISE, SET, SINK, SIZE, VALUE, LeaveLoop, Runtime
from .source import unpack
from .split import RUNTIME, Instrument
from .values import detached, is_device_type, is_value, stays

_MAX_LEFT_BYTES = 64 << 20
_STEP_STRIDE = 1000  # backward passes an iteration at most, in a gang's step numbers


class GangAborted(BaseException):
    """A rank of the gang was lost: the lease is dropped and its units go out again. No `except Exception` of a user's body stops it."""


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


class Recorder(Runtime):
    """Executes device-side evaluations and logs their plain results."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.callees)
        self.accumulators = frozenset(program.accumulators)
        self.log: list[list[Any]] = []
        self.inside = 0  # within a device-side evaluation everything is device-side
        self.owned: dict[int, Any] = {}  # containers and objects that device-side evaluations returned
        self._fresh: dict[int, Any] = {}

    def start(self, env: dict[str, Any]) -> None:
        """A new iteration: what names still hold stays what it was."""
        self.turn, self.log = 0, []
        kept = {id(v): v for v in env.values()}
        self.owned = {key: v for key, v in self.owned.items() if key in kept}
        self._fresh = {}

    def own(self, value: Any) -> Any:
        """Marks a value (a batch, say) as device-side whatever its type."""
        if not is_device_type(type(value)) and not isinstance(value, (int, float, str, bool, type(None))):
            self.owned[id(value)] = value
        return value

    def is_device(self, value: Any) -> bool:
        return id(value) in self.owned or super().is_device(value)

    def fresh(self, number: int, container: Any) -> Any:
        self._fresh[id(container)] = container
        return container

    def _is_fresh(self, container: Any) -> bool:
        return id(container) in self._fresh

    def _op(self, number: int, act: Callable[[], Any]) -> Any:
        if self.inside:
            return act()
        turn, self.turn = self.turn, self.turn + 1
        self.inside += 1
        try:
            value = act()
        except Exception as error:
            self.log.append([turn, abs(number), RAISE, _described(error)])
            raise
        finally:
            self.inside -= 1
        if is_value(value):
            if number > 0:
                kind, wire = VALUE, value
                if isinstance(value, torch.Size):
                    kind, wire = SIZE, list(value)
                elif type(value) is set:
                    kind, wire = SET, list(value)
                self.log.append([turn, number, kind, wire])
            return value
        return self.own(value)

    def _take_values(self, number: int, function: Any, values: dict[Any, Any], *, text: bool, limited: bool = False) -> dict[Any, Any]:
        if self.inside:
            return values
        turn, self.turn = self.turn, self.turn + 1
        given: dict[Any, Any] = {}
        for key, value in values.items():
            if text:
                given[key] = str(value)
            else:
                with contextlib.suppress(TypeError):
                    given[key] = detached(value)
        if limited and sum(_size(v) for v in given.values()) > 1 << 18:
            given = {}
        self.log.append([turn, abs(number), SINK, given])
        return {**values, **given}

    def _silent(self, function: Any) -> bool:
        return stays(function)


class WorkerHalf:
    """One program, opened: loads a state, runs leases, reads the state back. `blob` fetches bytes by digest."""

    def __init__(self, program: bytes, blob: Callable[[str], bytes]) -> None:
        self.program = open_program(program, blob)
        self.env = self.program.env
        self.roots = self.program.roots
        self.recorder = Recorder(self.program)
        self.code = compile_body(self.program)

    def load(self, state: State) -> None:
        """Puts a version into the objects (and, in a solo run, into the generators)."""
        self.roots.write(state, self.env, rng=self.program.solo)

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
        outcome, program = Outcome(), self.program
        first = lease.units[0].index
        if not program.solo and not lease.gang:
            self._advance_schedulers(first - lease.base_iteration)
        with self._surroundings(spec) as losses, self._reducing(reduce) as position:
            for place, unit in enumerate(lease.units):
                if not go():
                    outcome.stopped = True
                    break
                if not program.solo:
                    seed_iteration(spec.seed, unit.index)
                position[:] = [lease.groups[place] * _STEP_STRIDE if lease.gang else 0, unit.samples]
                start = time.perf_counter()
                outcome.exit = self._iteration(unit.index, unpack(unit.data))
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
            outcome.left = self._left(final=lease.final or bool(outcome.exit))
        return outcome

    def _iteration(self, index: int, data: Any) -> str:
        program, recorder, env = self.program, self.recorder, self.env
        recorder.start(env)
        for name, (base, step) in program.counters.items():
            env[name] = base + step * (index - program.first)
        env[RUNTIME] = recorder
        recorder.flow = "next"
        try:
            env[ITEM] = program.opener.open(data, index, recorder.own)
            exec(self.code, env)  # the user's own loop body, on the machine that was given it
        except LeaveLoop:
            return "return"
        except GangAborted:
            raise
        except Exception as error:
            recorder.log.append([recorder.turn, 0, RAISE, _described(error)])
            return "error"
        return "" if recorder.flow == "next" else recorder.flow

    def _left(self, *, final: bool) -> bytes:
        """Device-side names that the loop leaves behind, by value: all at the end, else those that only some iterations assign."""
        names = self.program.stored if final else self.program.conditional
        left: dict[str, Any] = {}
        for name in names:
            if name in self.env and self.recorder.touches(self.env[name]):
                with contextlib.suppress(TypeError):
                    left[name] = detached(self.env[name])
        return encode(left) if sum(_size(v) for v in left.values()) <= _MAX_LEFT_BYTES else encode({})

    def _advance_schedulers(self, steps: int) -> None:
        """Per-batch schedulers stand where the whole loop would have them, not where this worker's share does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for label in self.program.stepped:
                for _ in range(max(0, steps)):
                    self.roots.schedulers[label].step()

    @contextlib.contextmanager
    def _surroundings(self, spec: EntrySpec) -> Iterator[list[float]]:
        """Silences the body, sets the kernel's numeric flags, and notes each loss that `backward` is called on."""
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
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
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

        def average() -> None:
            queued[0] = False
            means = reduce(position[0], position[1], [p.grad for p in parameters])
            position[0] += 1
            for parameter, mean in zip(parameters, means, strict=True):
                if mean is not None and parameter.grad is None:
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


def _described(error: BaseException) -> dict[str, Any]:
    """An exception as data: its type's name, message and the user's own lines."""
    frames = [
        [frame.filename, frame.lineno or 0, frame.name]
        for frame in traceback.extract_tb(error.__traceback__)
        if is_user_code_name(frame.filename)
    ]
    kind = type(error)
    builtin = kind.__module__ == "builtins" and getattr(builtins, kind.__name__, None) is kind
    arguments = [a for a in error.args if is_value(a) and not isinstance(a, set)] if len(error.args) <= 4 else [str(error)]
    return {
        "type": kind.__name__ if builtin else f"{kind.__module__}.{kind.__qualname__}",
        "message": str(error)[:10_000],
        "args": arguments if len(arguments) == len(error.args) else [str(error)[:10_000]],
        "frames": frames[-20:],
    }


def is_user_code_name(filename: str) -> bool:
    name = filename.replace("\\", "/")
    return "site-packages" not in name and "/lib/python3" not in name and "depin_nb/" not in name and "<frozen" not in name


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_size(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_size(v) for v in value)
    return int(getattr(value, "nbytes", 64))
