"""A trusted worker sums up the changes of other workers for the hub: takes them in parts, checks them as the hub would, hands on one.

Only changes of leases are taken that the hub says are for this worker. Files lie in a folder of its own, which goes with the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import partly
from ..core.errors import CodecError, TransferGone, UsageError
from ..core.lease import StrategyConfig
from ..core.parts import MAX_PART_BYTES, Announced, Buffer, announced
from ..core.state import State
from ..hub.versions.states import checked_run_id
from .link import Go
from .transfer import Cache, Incoming
from .versions import RUNS_KEPT, Versions

if TYPE_CHECKING:
    from ..training.compress import Change
    from .link import HubLink

MAX_PLACED = 512  # leases that are remembered
MAX_CHANGES = 64  # on disk for one version: more than a fan-in, with those done twice
SUMS_KEPT = 2


def folder_of(home: Path, worker: str) -> Path:
    return home / "aggregating" / re.sub(r"[^A-Za-z0-9_-]", "_", worker)


class Aggregating:
    """`handlers()` are for the agent's Dask worker: workers call `depin_put` and `depin_part`, the hub all but the first."""

    def __init__(self, hub: HubLink, folder: Path, cache: Cache, executor: Executor) -> None:
        self._hub, self._folder, self._cache, self._executor = hub, folder, cache, executor
        self._incoming = Incoming(hub.ask, cache, lambda: hub.down_part_bytes)
        self._versions = Versions()
        self._placed: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._sums: OrderedDict[str, bytes] = OrderedDict()
        self._bases: OrderedDict[str, tuple[int, State]] = OrderedDict()  # by run
        self._lock = asyncio.Lock()  # of the base
        shutil.rmtree(folder, ignore_errors=True)

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {"put": self.put, "check": self.check, "sum": self.sum, "part": self.part}

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def put(self, worker: str, lease: str, about: Any, offset: Any, data: Buffer) -> dict[str, Any]:
        """As the hub's `depin_put`."""
        placed = self._placed.get(lease)
        if placed is None:
            placed = await self._hub.call("depin_placed", shaped=False, lease=lease)
            if "refused" in placed:
                return placed
            self._placed[lease] = placed
            while len(self._placed) > MAX_PLACED:
                self._placed.popitem(last=False)
        if placed["worker"] != worker:
            raise UsageError("that lease is another worker's")
        what = announced(about, max_bytes=placed["most"])
        if type(offset) is not int or not 0 <= offset <= what.size_bytes or len(data) > min(MAX_PART_BYTES, what.size_bytes - offset):
            raise UsageError(f"a part is of at most {MAX_PART_BYTES} bytes and lies within what was announced")
        append = partial(partly.append, self._path(placed, lease), offset, data, siblings="*", keep=MAX_CHANGES)
        return {"have": await self._in_executor(append)}

    async def check(self, worker: str, lease: str, about: Any) -> dict[str, Any]:
        """Whether the lease's change is here and one that fits its base. Raises CodecError where not."""
        from ..training.compress import read_change

        placed = self._known(lease)
        what = announced(about, max_bytes=placed["most"])
        base = await self._version(placed["run"], placed["version"])

        def read() -> None:
            read_change(partly.whole(self._path(placed, lease), what), base, max_bytes=placed["most"], bits=placed["bits"])

        await self._in_executor(read)
        return {"valid": True}

    async def sum(self, worker: str, run: str, strategy: dict[str, Any], leases: Any) -> dict[str, Any]:
        """The announcement of one change for those of `leases`, each `(lease, about, samples, last index)`; they share their base."""
        from ..training.compress import read_change
        from ..training.merge import Contribution
        from ..training.tree import summed

        if not leases:
            raise UsageError("a sum is of some leases")
        placed = [self._known(lease) for lease, *_ in leases]
        if {(each["run"], each["version"]) for each in placed} != {(run, placed[0]["version"])}:
            raise UsageError("leases that are summed up have one base")
        base, config = await self._version(run, placed[0]["version"]), StrategyConfig.from_dict(strategy)

        def change(each: dict[str, Any], lease: str, about: Any) -> Change:
            what = announced(about, max_bytes=each["most"])
            return read_change(partly.whole(self._path(each, lease), what), base, max_bytes=each["most"], bits=each["bits"])

        def add() -> tuple[str, bytes]:
            parts = zip(placed, leases, strict=True)  # read one at a time, as they are added
            contributions = [Contribution(i, int(n), int(last), partial(change, each, i, what)) for each, (i, what, n, last) in parts]
            data = summed(base, contributions, config)
            return hashlib.sha256(data).hexdigest(), data

        digest, data = await self._in_executor(add)
        self._sums[digest] = data
        while len(self._sums) > SUMS_KEPT:
            self._sums.popitem(last=False)
        return Announced(digest, len(data)).to_dict()

    async def part(self, worker: str, digest: str, offset: int, want: int, run: str = "") -> dict[str, Any]:
        """A part of a sum, or of a version or blob that is in the cache of this machine."""
        if type(offset) is not int or type(want) is not int or offset < 0 or not 0 < want <= MAX_PART_BYTES:
            raise UsageError(f"a part is of at most {MAX_PART_BYTES} bytes")
        if (data := self._sums.get(digest)) is not None:
            return {"data": memoryview(data)[offset : offset + want]}
        part = await self._in_executor(partial(self._cache.part, digest, offset, want))
        if part is None:
            raise TransferGone("that isn't kept here any more", digest=str(digest)[:64])
        return {"data": part}

    def _known(self, lease: str) -> dict[str, Any]:
        placed = self._placed.get(lease)
        if placed is None:
            raise CodecError(f"nothing of lease {str(lease)[:64]} is here")
        return placed

    def _path(self, placed: dict[str, Any], lease: str) -> Path:
        name = hashlib.sha256(f"{placed['run']} {lease}".encode()).hexdigest()
        return self._folder / checked_run_id(placed["run"]) / f"{placed['version']}" / name

    async def _version(self, run: str, version: int) -> State:
        """The leases' base; what was for an older one goes."""
        async with self._lock:
            held = self._bases.get(run)
            if held is None or held[0] != version:
                held = self._bases[run] = version, await self._in_executor(partial(self._fetched, run, version))
                while len(self._bases) > RUNS_KEPT:
                    shutil.rmtree(self._folder / self._bases.popitem(last=False)[0], ignore_errors=True)
                for old in (self._folder / checked_run_id(run)).glob("*"):
                    if int(old.name) < version:
                        shutil.rmtree(old, ignore_errors=True)
            return held[1]

    def _fetched(self, run: str, version: int) -> State:
        go = Go()
        ask, whole = partial(self._hub.ask, go=go), partial(self._incoming.whole, run_id=run, go=go)
        return self._versions.get(ask, whole, run, version)

    async def _in_executor(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)
