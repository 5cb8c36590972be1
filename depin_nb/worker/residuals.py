"""What compression left out of a worker's changes (error feedback), by run: in memory, and in a file so that a restart keeps it.

Losing one is survivable: the worker then begins without, and what was left out is lost, once. So files are neither synced nor required:
one that can't be written or read is said in the log, and training goes on.
"""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.codec import decode, encode
from ..core.errors import CodecError

if TYPE_CHECKING:
    import torch

    Residual = dict[str, torch.Tensor]

log = logging.getLogger(__name__)

RUNS_KEPT = 2  # in memory, and in files; one takes as much as the parameters in float32
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class Residuals:
    """`folder`/<run>.residual, codec bytes of {slot: float32 tensor}. Without a folder they are in memory alone."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._runs: OrderedDict[str, Residual] = OrderedDict()

    def of(self, run_id: str) -> Residual:
        """What the run's leases so far left out; empty when nothing is known."""
        if run_id not in self._runs:
            self.put(run_id, self._read(run_id))
        self._runs.move_to_end(run_id)
        return self._runs[run_id]

    def put(self, run_id: str, residual: Residual) -> None:
        """What the next lease begins with, in memory: after one that is on its way to the hub, or again after one that was refused."""
        self._runs[run_id] = residual
        self._runs.move_to_end(run_id)
        while len(self._runs) > RUNS_KEPT:
            self._runs.popitem(last=False)

    def write(self, run_id: str, lease_id: str, residual: Residual) -> None:
        """What a lease that isn't accepted yet leaves out, to a file of its own. May take a while."""
        if self._folder is None or not residual:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._pending(run_id, lease_id).write_bytes(encode(residual))
        except OSError as error:
            log.warning("what compression left out isn't kept for a restart: %s", error)
            self.drop(run_id, lease_id)

    def accept(self, run_id: str, lease_id: str, residual: Residual) -> None:
        """The lease counts: this is what a restart finds. Quick."""
        if self._folder is None or not residual:
            return
        try:
            os.replace(self._pending(run_id, lease_id), self._path(run_id))
            self._prune()
        except FileNotFoundError:
            _drop(self._path(run_id))  # nothing is better than one that has been sent already
        except OSError as error:
            log.warning("what compression left out isn't kept for a restart: %s", error)

    def drop(self, run_id: str, lease_id: str) -> None:
        """The lease doesn't count: what the earlier ones left out stands."""
        if self._folder is not None:
            _drop(self._pending(run_id, lease_id))

    def _read(self, run_id: str) -> Residual:
        if self._folder is None:
            return {}
        try:
            data = decode(self._path(run_id).read_bytes())
            return _checked(data)
        except FileNotFoundError:
            return {}
        except (OSError, CodecError) as error:
            log.warning("what compression left out of %s can't be read; it begins without: %s", run_id, error)
            return {}

    def _path(self, run_id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{_UNSAFE.sub('_', run_id)}.residual"

    def _pending(self, run_id: str, lease_id: str) -> Path:
        return self._path(run_id).with_suffix(f".{_UNSAFE.sub('_', lease_id)}.pending")

    def _prune(self) -> None:
        assert self._folder is not None
        files = sorted(self._folder.glob("*.residual"), key=lambda path: path.stat().st_mtime)
        for path in files[:-RUNS_KEPT]:
            _drop(path)
            for pending in self._folder.glob(f"{path.stem}.*.pending"):
                _drop(pending)


def residuals_of(home: Path, worker: str) -> Residuals:
    """Those of the worker of that name, in the state folder."""
    return Residuals(home / "residuals" / _UNSAFE.sub("_", worker))


def _drop(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _checked(data: object) -> Residual:
    import torch

    if type(data) is not dict or not all(
        type(n) is str and isinstance(t, torch.Tensor) and t.dtype == torch.float32 for n, t in data.items()
    ):
        raise CodecError("not what compression left out")
    return data
