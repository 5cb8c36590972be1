"""Real worker processes that start in a moment: forked from one that has imported everything. `python -m depin_nb.testing.nursery`.

Reads a JSON list of arguments for `depin-worker` a line, answers the new process's id a line. Ends its children when its input ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..backends.base import WORKER_ENV

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Nursery:
    """Such a process and its children, from outside. `log`: where they write. A context manager."""

    def __init__(self, home: Path, log: Path) -> None:
        self._log: BinaryIO = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **WORKER_ENV, "DEPIN_HOME": str(home)},
        )

    def start(self, *arguments: str) -> int:
        """Starts a worker; returns its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def _worker(arguments: list[str]) -> None:
    """In the child: never returns."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    code = 1
    try:
        from ..worker.agent import main

        code = main(arguments)
    finally:
        os._exit(code)


def _warm() -> None:
    """What each worker would import at its start and in its first lease. No backward: torch forbids it in children of one that did."""
    import distributed  # noqa: F401
    import torch

    from ..loop.halves import record  # noqa: F401
    from ..training import compress  # noqa: F401
    from ..worker import agent, device, link, runner  # noqa: F401

    torch.set_num_threads(1)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    torch.optim.SGD([parameter], lr=0.1).step()


def _main() -> None:
    _warm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
    children = []
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _worker(json.loads(line))
        children.append(pid)
        print(pid, flush=True)
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()
