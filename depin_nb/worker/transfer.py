"""Long transfers of a worker, in parts: what is fetched is spooled to files, so that a broken one goes on where it stood; also for the
next process, and for other workers of this state folder, who find it there."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..core.errors import CodecError, DepinError, HubDied, HubError, TransferGone
from ..core.lease import Report
from ..core.parts import MAX_PART_BYTES, WHOLE_BYTES, Announced, Buffer, announced, is_digest
from .link import Dropped, Go

log = logging.getLogger(__name__)

CACHE_BYTES = 4 << 30
WORTH_KEEPING_BYTES = 64 << 10  # smaller things are asked for again sooner than found
PART_OLD_S = 86400.0  # a transfer that nobody went on with for so long is given up
LOCK_POLL_S = 0.1
TRIES = 2  # of a part whose connection breaks: a new one is opened for the second
RESTARTS = 2  # of a change of which the hub forgot what it had

T = TypeVar("T")
Part = Callable[[int, int], Buffer]  # (offset, at most so many bytes) -> some bytes from there


class Cache:
    """`folder`/<sha256>: whole things; `<sha256>.part`: the beginning of one. Shared by the processes of a state folder.

    Nothing is used before its digest was checked, so half-written or altered files do no harm. Without a folder, or where it can't be
    written, transfers go through memory and begin anew when they break.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = CACHE_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def find(self, digest: str) -> Buffer | None:
        """The thing, if it is here whole, read from its file as it is used. One that isn't what its name says is removed."""
        if self._folder is None:
            return None
        path = self._folder / digest
        try:
            with path.open("rb") as file:
                data = _mapped(file.fileno(), os.fstat(file.fileno()).st_size)
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        log.warning("%s in the cache isn't what its name says; it is fetched again", digest[:12])
        with suppress(OSError):
            path.unlink()
        return None

    def part(self, digest: str, offset: int, want: int) -> bytes | None:
        """Part of a thing that is here whole, for another worker, who checks its digest; None where it isn't here."""
        if self._folder is None or not is_digest(digest):
            return None
        try:
            file = os.open(self._folder / digest, os.O_RDONLY)
        except OSError:
            return None
        try:
            return os.pread(file, want, offset)
        finally:
            os.close(file)

    def put(self, digest: str, data: Buffer) -> None:
        """Keeps what came in one message, for other workers of this machine."""
        if self._folder is None or not WORTH_KEEPING_BYTES <= len(data) <= self._max_bytes:
            return
        temporary = self._folder / f"{digest}.{os.getpid()}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_bytes(data)
            temporary.replace(self._folder / digest)
            self._prune(self._folder, digest)
        except OSError as error:
            log.warning("a blob isn't kept for other workers: %s", error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def fetch(self, what: Announced, part: Part, go: Go, part_bytes: int) -> Buffer:
        """The thing, from here or by its missing parts. Waits while another process fetches it. Raises CodecError when what came isn't
        what was announced, Dropped when `go` says stop, and what `part` raises."""
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                return self._fetched(self._folder, what, part, go, part_bytes)
            except OSError as error:
                log.warning("%s can't keep a transfer, which goes through memory: %s", self._folder, error)
        data = bytearray()
        while len(data) < what.size_bytes:
            data += _checked(part(len(data), min(part_bytes, what.size_bytes - len(data))), what.size_bytes - len(data))
        if hashlib.sha256(data).hexdigest() != what.digest:
            raise _wrong(what)
        return memoryview(data)

    def _fetched(self, folder: Path, what: Announced, part: Part, go: Go, part_bytes: int) -> Buffer:
        path = folder / f"{what.digest}.part"
        while True:
            if (found := self.find(what.digest)) is not None:
                return found
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if _locked(file, path):
                    data = self._completed(file, what, part, part_bytes)
                    os.replace(path, folder / what.digest)
                    break
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a mapping of it has a descriptor of its own, which would keep the lock
                os.close(file)
            if not go():
                raise Dropped
            go.wait(LOCK_POLL_S)
        self._prune(folder, what.digest)
        return data

    def _completed(self, file: int, what: Announced, part: Part, part_bytes: int) -> Buffer:
        """What the file holds once all of it is there."""
        for resumed in (True, False):
            if not resumed or os.fstat(file).st_size > what.size_bytes:
                os.ftruncate(file, 0)
            at = begun = os.fstat(file).st_size
            while at < what.size_bytes:
                view = _checked(part(at, min(part_bytes, what.size_bytes - at)), what.size_bytes - at)
                at += _write(file, view, at)
            data = _mapped(file, what.size_bytes)
            if hashlib.sha256(data).hexdigest() == what.digest:
                return data
            if not begun:
                break  # else what an earlier process left was not what it wrote: once more from the beginning
        os.ftruncate(file, 0)
        raise _wrong(what)

    def _prune(self, folder: Path, newest: str) -> None:
        """The least used go first."""
        now, kept = time.time(), 0
        with suppress(OSError):
            files = [(path.stat(), path) for path in folder.iterdir()]
            for stat, path in sorted(files, key=lambda each: -each[0].st_mtime):
                whole = path.suffix == ""
                kept += stat.st_size if whole else 0
                if path.name != newest and (kept > self._max_bytes if whole else now - stat.st_mtime > PART_OLD_S):
                    path.unlink(missing_ok=True)


def cache_of(home: Path) -> Cache:
    """The one that all workers of the state folder share."""
    return Cache(home / "cache")


class Incoming:
    """Resolves what the hub announced. `ask(op, go, **request)` asks the hub from the thread that computes, `ask_peer(address, op, go,
    **request)` a worker that has it too; where that fails, the hub gives the rest."""

    def __init__(
        self,
        ask: Callable[..., Any],
        cache: Cache,
        part_bytes: Callable[[], int] = lambda: WHOLE_BYTES,
        ask_peer: Callable[..., Any] | None = None,
    ) -> None:
        self._ask, self._cache, self._part_bytes, self._ask_peer = ask, cache, part_bytes, ask_peer

    def whole(self, data: Any, run_id: str, go: Go) -> Buffer:
        """`data` itself, or what it announces."""
        if isinstance(data, (bytes, bytearray, memoryview)):
            return data
        holders = holders_of(data)
        what = announced({name: value for name, value in data.items() if name != "from"} if isinstance(data, dict) else data)

        def part(offset: int, want: int) -> Buffer:
            while holders and self._ask_peer is not None:
                try:
                    return self._ask_peer(holders[0], "depin_part", go, run=run_id, digest=what.digest, offset=offset, want=want)["data"]
                except (DepinError, KeyError, TypeError) as error:
                    log.info("%s doesn't have it (any more): %s", holders.pop(0), error)
            for attempt in range(1, TRIES + 1):
                try:
                    return self._ask("depin_part", go, run=run_id, digest=what.digest, offset=offset, want=want)["data"]
                except HubDied:
                    if attempt == TRIES:
                        raise
            raise AssertionError

        size = min(self._part_bytes(), MAX_PART_BYTES)
        try:
            return self._cache.fetch(what, part, go, size)
        except CodecError:
            if not holders:
                raise
            holders.clear()  # what one of them gave isn't what it should be
            return self._cache.fetch(what, part, go, size)

    def blob(self, digest: str, run_id: str, go: Go) -> bytes:
        """A blob, from this machine or from the hub. (Its digest is checked by who keeps it.)"""
        if (found := self._cache.find(digest)) is not None:
            return bytes(found)
        answer, data = again_if_gone(lambda: self._blob(digest, run_id, go))
        if not isinstance(answer, dict):
            self._cache.put(digest, data)
        return data

    def _blob(self, digest: str, run_id: str, go: Go) -> tuple[Any, bytes]:
        answer = self._ask("depin_blob", go, run=run_id, digest=digest)["data"]
        return answer, bytes(self.whole(answer, run_id, go))


def holders_of(data: Any) -> list[str]:
    """The workers that an announcement names."""
    said = data.get("from", ()) if isinstance(data, dict) else ()
    return [address for address in said if isinstance(address, str)] if isinstance(said, (list, tuple)) else []


def again_if_gone(call: Callable[[], T]) -> T:
    """What `call` gives; a second time where what the hub announced is gone before it was fetched."""
    try:
        return call()
    except TransferGone:
        return call()


class Calls(Protocol):
    """A worker's link, as reports use it."""

    @property
    def whole_bytes(self) -> int: ...
    @property
    def up_part_bytes(self) -> int: ...
    async def call(self, op: str, **request: Any) -> Any: ...


async def hand_in(hub: Calls, report: Report) -> dict[str, Any]:
    """What the hub answers to the report. A change that is too large for a message goes ahead in parts, from the one on that the hub
    lacks. Raises HubDied as `call` does: then call it again."""
    if len(report.change) <= hub.whole_bytes:
        return await hub.call("depin_report", report=report.to_dict())
    sent = await put_parts(hub, report)
    if "refused" in sent:
        return {"accepted": False, "reason": str(sent["refused"])}
    return await hub.call("depin_report", report={**report.to_dict(), "change": b"", "extra": {**report.extra, "sent": sent}})


async def put_parts(to: Calls, report: Report) -> dict[str, Any]:
    """The report's change goes to `to` in parts, from the one on that it lacks. Its announcement, or `{"refused": reason}`."""
    change = memoryview(report.change)
    digest = await asyncio.get_running_loop().run_in_executor(None, lambda: hashlib.sha256(change).hexdigest())
    about = Announced(digest, len(change)).to_dict()
    at, restarts = 0, 0
    while at < len(change):
        part = change[at : at + min(to.up_part_bytes, MAX_PART_BYTES)]
        answer = await _again(lambda at=at, part=part: to.call("depin_put", lease=report.lease_id, about=about, offset=at, data=part))  # type: ignore[misc]
        if "refused" in answer:
            return answer
        have = answer.get("have")
        if type(have) is not int or not 0 <= have <= len(change):
            raise HubError("the hub's answer to a part makes no sense")
        if have <= at:
            restarts += 1
            if restarts > RESTARTS:
                raise HubError("a change can't be handed in: the hub loses its parts")
        at = have
    return about


async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
    for _ in range(TRIES - 1):
        with suppress(HubDied):
            return await call()
    return await call()


def _checked(part: Any, most: int) -> memoryview:
    if not isinstance(part, (bytes, bytearray, memoryview)) or not 0 < len(part) <= most:
        raise CodecError("a part isn't of the size that was asked for")
    return memoryview(part)


def _wrong(what: Announced) -> CodecError:
    return CodecError("what came in parts isn't what its digest says", digest=what.digest)


def _locked(file: int, path: Path) -> bool:
    """Whether this process may write to it now: nobody else does, and it still is the file of that name."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _write(file: int, view: memoryview, at: int) -> int:
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], at + done)
    return done


def _mapped(file: int, size: int) -> Buffer:
    """Read from the file as it is used: nothing of it has to be in memory twice."""
    return memoryview(mmap.mmap(file, size, access=mmap.ACCESS_READ)) if size else memoryview(b"")
