"""Which way a dataset goes to the workers: whole, only the samples of each lease, or built by each worker from its own path."""

from __future__ import annotations

import io
import socket
import threading
import types
from typing import Any

import cloudpickle
import numpy as np
import torch

from ...core.errors import ConfigError
from ..byte_count import ByteCount
from .local_files import file_read
from .recipe import absent, leaves_of, recipe

WAYS = ("auto", "whole", "samples", "worker")
WHOLE_BYTES = 256 << 20  # what a dataset may have before only its samples travel: a minute on a home link of 40 Mbit/s

_STUCK = (io.IOBase, socket.socket, types.GeneratorType)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))  # they arrive as ghosts
_STUCK_MODULES = ("sqlite3", "h5py", "lmdb")


def check_way(way: str) -> str:
    """Raises ConfigError for a way that there isn't."""
    if way not in WAYS:
        raise ConfigError(f"data={way!r} is not a way for data to travel", hint=f"It is one of {', '.join(WAYS)}.", way=way)
    return way


def choose_way(dataset: Any, way: str, *, elsewhere: bool = False) -> tuple[str, str]:
    """(`whole`, `samples` or `worker`; why, "" for the ordinary way). `elsewhere`: a worker may be on another machine."""
    if way != "auto":
        return way, ""
    nbytes = travelling_bytes(dataset)
    if nbytes is None:
        return "samples", "the dataset can't be sent itself, so leases carry its samples"
    if nbytes > WHOLE_BYTES:
        return "samples", f"the dataset has {nbytes / 2**20:.0f} MB, so leases carry only their samples"
    read = file_read(dataset) if elsewhere else ""
    if read:
        why = f"the dataset reads files of this machine (`{read}`), so leases carry its samples"
        return "samples", f"{why}; where each worker has the files, use `--data worker`"
    return "whole", ""


def stand_ins(dataset: Any, way: str) -> dict[int, tuple[Any, Any]]:
    """What takes a dataset's place in the program: by id, the dataset itself and its reduction for the pickle."""
    if way == "whole":
        return {}
    if way == "samples":
        return {id(dataset): (dataset, absent(dataset))}
    return {id(leaf): (leaf, recipe(leaf)) for leaf in leaves_of(dataset)}


def travelling_bytes(value: Any) -> int | None:
    """Bytes of what would travel with `value`; None where it holds what can't: open files, connections or generators."""
    sizer = _Sizer()
    try:
        sizer.dump(value)
    except Exception:
        return None
    return sizer.nbytes + sizer.sink.nbytes


class _Sizer(cloudpickle.Pickler):
    """Goes over a graph, adds up its tensors and arrays, and writes nothing."""

    def __init__(self) -> None:
        self.sink = ByteCount()
        super().__init__(self.sink, protocol=5)
        self.nbytes = 0
        self._seen: dict[int, Any] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor) or (isinstance(obj, np.ndarray) and obj.dtype.kind != "O"):
            if id(obj) not in self._seen:
                self._seen[id(obj)] = obj
                self.nbytes += obj.nbytes
            return 0
        if isinstance(obj, _STUCK) and not isinstance(obj, (io.BytesIO, io.StringIO)):
            raise TypeError(type(obj).__name__)
        if type(obj).__module__.split(".")[0] in _STUCK_MODULES:
            raise TypeError(type(obj).__name__)
        return 0 if isinstance(obj, _LOCKS) else None
