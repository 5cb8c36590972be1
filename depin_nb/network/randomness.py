"""Keeps Dask's own threads away from Python's global random generator, which belongs to the user's cell and to its iterations."""

from __future__ import annotations

import random
import sys
import types

# Draws on the event loop's thread, with `import random`: back-off, retries, sizes of lists, jitter.
_MODULES = (
    "dask.sizeof",
    "distributed.comm.core",
    "distributed.utils_comm",
    "distributed.worker",
    "distributed.worker_state_machine",
    "tornado.ioloop",
)
_COMPRESSION = "distributed.protocol.compression"  # draws where to sample a large frame, with `from random import randint`


def keep_apart() -> None:
    """Gives those modules a `random` with a generator of its own. A second call does nothing. Imports distributed.

    Without it an iteration's `random.random()` depends on what is sent meanwhile: Dask draws while it compresses a frame of 10 kB.
    """
    import distributed  # noqa: F401 (loads the modules)

    own = _twin()
    for name in _MODULES:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "random", None) is random:
            module.random = own  # type: ignore[attr-defined]
    compression = sys.modules.get(_COMPRESSION)
    if compression is not None and getattr(compression, "randint", None) == random.randint:
        compression.randint = own.randint  # type: ignore[attr-defined]


def _twin() -> types.ModuleType:
    """A copy of the module `random` whose functions draw from another generator."""
    own, generator = types.ModuleType("random"), random.Random()
    vars(own).update(vars(random))
    for name in random.__all__:
        method = getattr(random, name)
        if isinstance(method, types.MethodType) or getattr(method, "__self__", None) is not None:
            setattr(own, name, getattr(generator, name, method))
    return own
