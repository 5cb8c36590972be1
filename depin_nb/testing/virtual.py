"""Time that passes only where something waits for it: an event loop without I/O, processes that can be killed, blocking code on it.

Everything runs in one thread's order, so what happens follows from the code and the seeds alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

EPOCH_S = 1.7e9
TURN_S = 1e-6  # two jobs of one thread never end at the same moment
FIBERS = "fiber"  # the name of the threads that blocking code runs on


class Stuck(AssertionError):
    """Everybody waits for somebody: nothing would ever happen again."""


class Killed(BaseException):
    """The process in which this is raised is gone. Nothing may catch it but the one who killed."""


class VirtualClock:
    """`ports.Clock` on virtual time. `wall_offset_s`: how far the wall clock was set wrong; `limit_s`: no history takes so long."""

    def __init__(self, limit_s: float) -> None:
        self.at_s, self.wall_offset_s = 1000.0, 0.0
        self._until_s = self.at_s + limit_s

    def now(self) -> float:
        return EPOCH_S + self.at_s + self.wall_offset_s

    def monotonic(self) -> float:
        return self.at_s

    def lift(self) -> None:
        """No limit any more: the history is over, and what is left is ended."""
        self._until_s = math.inf

    def select(self, timeout_s: float | None) -> list[Any]:
        """What the event loop asks when nothing is ready: time passes at once."""
        if timeout_s is None:
            raise Stuck("everybody waits for somebody: nothing would ever happen again")
        self.at_s += max(0.0, timeout_s)
        if self.at_s > self._until_s:
            raise Stuck("the history doesn't come to an end")
        return []


class Process:
    """Tasks that die together. What they start belongs to them too."""

    current: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)

    def __init__(self, name: str) -> None:
        self.name, self.alive = name, True
        self.tasks: set[asyncio.Task[Any]] = set()
        self._context = contextvars.copy_context()
        self._context.run(Process.current.set, self)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    async def kill(self) -> None:
        """Ends all tasks; returns once none is left. Code that insists on waiting is ended again."""
        self.alive = False
        while self.tasks:
            for task in list(self.tasks):
                task.cancel()
            await asyncio.sleep(0)


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time is `clock`'s. Jobs for `Jobs` run in it; other executors' jobs run as fibers, one at a time."""

    def __init__(self, clock: VirtualClock, fibers: ThreadPoolExecutor) -> None:
        super().__init__()
        self._selector = clock
        self._virtual = clock
        self._fibers = fibers
        self.set_task_factory(_owned)

    def time(self) -> float:
        return self._virtual.at_s

    def _process_events(self, event_list: list[Any]) -> None:
        """There is no I/O."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        if isinstance(executor, Jobs):
            return executor.job(self, func, args)
        return self.create_task(Fiber(self._fibers, lambda: func(*args)).run())


def _owned(loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
    context = options.get("context")
    owner = Process.current.get() if context is None else context.get(Process.current)
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    if owner is not None:
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
    return task


class Jobs(Executor):
    """An executor of a process: its jobs run in the loop's own thread, each at a moment of `delay_s()` later; in turn if `serial`.

    `point(name)` is called before and after each job and may raise Killed. A dead process's jobs are never run and never end.
    """

    def __init__(self, process: Process, *, serial: bool, delay_s: Callable[[], float], point: Callable[[str], None]) -> None:
        self._process, self._serial, self._delay_s, self._point = process, serial, delay_s, point
        self._free_s = 0.0

    def job(self, loop: asyncio.AbstractEventLoop, func: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        future = loop.create_future()
        at_s = max(loop.time() + self._delay_s(), self._free_s + TURN_S)
        if self._serial:
            self._free_s = at_s
        loop.call_at(at_s, self._run, future, func, args)
        return future

    def _run(self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if not self._process.alive or future.cancelled():
            return
        try:
            self._point("job")
            result = func(*args)
            self._point("job done")
        except Killed:
            return
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("jobs come through the loop's run_in_executor")


class Fiber:
    """Blocking code on a thread of its own. The loop waits while it computes; the loop goes on while it waits in `wait_for`."""

    _here = threading.local()

    def __init__(self, threads: ThreadPoolExecutor, function: Callable[[], Any]) -> None:
        self._threads, self._function = threads, function
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._wish: Callable[[], Coroutine[Any, Any, Any]] | None = None
        self._answer: Any = None
        self._error: BaseException | None = None
        self._done = False
        self.process = Process.current.get()  # to which it belongs

    @classmethod
    def here(cls) -> Fiber:
        """The one that this code runs in."""
        return cls._here.fiber

    @classmethod
    def wait_for(cls, wish: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Called by the blocking code: what `wish()` comes to on the loop. Raises what it raises, Killed when the process is gone."""
        fiber = cls.here()
        fiber._wish = wish
        fiber._theirs.release()
        fiber._mine.acquire()
        if fiber._error is not None:
            raise fiber._error
        return fiber._answer

    def _main(self) -> None:
        self._mine.acquire()
        Fiber._here.fiber = self
        try:
            self._answer, self._error = self._function(), None
        except BaseException as error:
            self._answer, self._error = None, error
        finally:
            self._done = True
            self._theirs.release()

    def _turn(self) -> None:
        self._mine.release()
        self._theirs.acquire()

    async def run(self) -> Any:
        self._threads.submit(self._main)
        self._turn()
        while not self._done:
            assert self._wish is not None
            try:
                self._answer, self._error = await self._wish(), None
            except Exception as error:
                self._error = error
            except BaseException:
                while not self._done:
                    self._error = Killed()
                    self._turn()
                raise
            self._turn()
        if isinstance(self._error, Killed):
            raise asyncio.CancelledError
        if self._error is not None:
            raise self._error
        return self._answer
