"""What is larger than a message, in parts: versions and blobs on their way to workers, changes on their way to the hub.

Parts go by digest and offset, so whoever lost its connection, or its hub, goes on where it stood. Large things are read from their files
and written to files: the hub's memory holds one part of each transfer. All that comes in is hostile until its digest is right.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depin_nb.core import partly
from depin_nb.core.errors import CodecError, TransferGone, UsageError
from depin_nb.core.parts import MAX_PART_BYTES, WHOLE_BYTES, Announced, Buffer, announced, megabytes
from depin_nb.core.state import State
from depin_nb.hub.leases.members import Member
from depin_nb.hub.run import Run
from depin_nb.hub.versions.references import Reference
from depin_nb.hub.versions.states import checked_run_id

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator

KEPT_PARCELS = 24  # of a run: as many steps as are kept, and some versions
BUSY = 4  # transfers under way from the hub: beyond that its uplink is what they wait for
MOST_HOLDERS = 3  # that a worker is told of
KEPT_INCOMING = 3  # of a worker in a run: it has two leases at most


@dataclass(frozen=True)
class Parcel:
    """Bytes that workers may fetch in parts: in memory, or in a file."""

    what: Announced
    data: Buffer | None = None
    path: Path | None = None

    def read(self, offset: int, count: int) -> Buffer:
        """Up to `count` bytes from `offset` on. Raises TransferGone when the file is gone."""
        if self.data is not None:
            return memoryview(self.data)[offset : offset + count]
        assert self.path is not None
        try:
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise TransferGone("what was announced isn't kept any more", digest=self.what.digest) from None
        try:
            return os.pread(file, count, offset)
        finally:
            os.close(file)


class Transfers:
    """`home`/parcels: versions that aren't in a file of their own. `home`/incoming/<run>: changes that aren't whole yet."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub
        self.whole_bytes, self.busy = WHOLE_BYTES, BUSY
        self._under_way: dict[str, str] = {}  # by a worker's address: the digest that it fetches
        self._holders: dict[str, dict[str, None]] = {}  # by digest: trusted workers that have it whole, by address
        self._parcels_folder, self._incoming = hub.home / "parcels", hub.home / "incoming"
        self._turn = 0
        self._parcels: dict[str, OrderedDict[Any, Parcel]] = {}  # by run, then by digest and by what it was made from

    # --- down -----------------------------------------------------------------------------------------------

    async def of_bytes(self, run: Run, data: bytes) -> bytes | dict[str, Any]:
        """`data` where one message carries it, else its announcement; it then stays in memory as long as its parcel is kept."""
        if len(data) <= self.whole_bytes:
            return data
        key = ("memory", id(data))  # the parcel holds on to it, so nothing else gets its id
        if (parcel := self._known(run, key)) is None:
            digest = await self._hub.in_executor(lambda: hashlib.sha256(data).hexdigest())
            parcel = self._keep(run, key, Parcel(Announced(digest, len(data)), data=data))
        return self._announced(parcel)

    async def of_blob(self, run: Run, digest: str) -> bytes | dict[str, Any]:
        """A blob of the run, or its announcement. Raises HubError when it isn't here."""
        size = self._hub.blobs.size(digest)
        if size <= self.whole_bytes:
            return await self._hub.in_executor(self._hub.blobs.get, digest)
        return self._announced(self._keep(run, ("blob", digest), Parcel(Announced(digest, size), path=self._hub.blobs.path(digest))))

    async def of_version(self, run: Run, version: int) -> bytes | dict[str, Any]:
        """A version as its file has it, or its announcement. Raises HubError when it isn't kept."""
        path, size = self._hub.states.path(run.run_id, version), self._hub.states.size(run.run_id, version)
        if size <= self.whole_bytes:
            return await self._hub.in_executor(self._hub.states.read, run.run_id, version)
        if (parcel := self._known(run, ("version", version))) is None:
            digest = await self._hub.in_executor(_digest_of_file, path)
            parcel = self._keep(run, ("version", version), Parcel(Announced(digest, size), path=path))
        return self._announced(parcel)

    async def of_reference(self, run: Run, reference: Reference) -> bytes | dict[str, Any]:
        """The reference whole, or its announcement: encoded once for all workers that ask."""
        state, key = reference.state, ("reference", reference.version, reference.digest)
        assert state is not None
        if (parcel := self._known(run, key)) is not None:
            return self._announced(parcel)
        if state.nbytes() <= self.whole_bytes and len(data := await reference.to_bytes(self._hub.in_executor)) <= self.whole_bytes:
            return data
        parcel = await self._hub.in_executor(self._written, state)
        return self._announced(self._keep(run, key, parcel))

    def _announced(self, parcel: Parcel) -> dict[str, Any]:
        """The announcement; while many transfers are under way, with trusted workers that have it too."""
        members = self._hub.members
        self._under_way = {address: digest for address, digest in self._under_way.items() if address in members}
        holders = [address for address in self._holders.get(parcel.what.digest, ()) if address in members]
        if len(self._under_way) < self.busy or not holders:
            return parcel.what.to_dict()
        self._turn += 1
        turned = [holders[(self._turn + i) % len(holders)] for i in range(min(len(holders), MOST_HOLDERS))]
        return {**parcel.what.to_dict(), "from": turned}

    def fetched(self, member: Member, digest: str) -> None:
        """The worker has it whole."""
        self._under_way.pop(member.address, None)
        if member.trusted:
            self._holders.setdefault(digest, {})[member.address] = None

    def _written(self, state: State) -> Parcel:
        """In a file, so that memory needn't hold it; where there is no room for one, in memory."""
        temporary = self._parcels_folder / f".{secrets.token_hex(8)}.tmp"
        digest, size = hashlib.sha256(), 0
        try:
            self._parcels_folder.mkdir(exist_ok=True, mode=0o700)
            with temporary.open("wb") as file:  # not synced: a hub that starts anew begins without parcels
                for part in state.to_parts():
                    digest.update(part)
                    size += file.write(part)
            path = self._parcels_folder / digest.hexdigest()
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            data = state.to_bytes()
            return Parcel(Announced(hashlib.sha256(data).hexdigest(), len(data)), data=data)
        return Parcel(Announced(path.name, size), path=path)

    def _known(self, run: Run, key: Any) -> Parcel | None:
        kept = self._parcels.get(run.run_id, OrderedDict())
        if key in kept:
            kept.move_to_end(key)
        return kept.get(key)

    def _keep(self, run: Run, key: Any, parcel: Parcel) -> Parcel:
        kept = self._parcels.setdefault(run.run_id, OrderedDict())
        kept[key] = parcel
        kept.move_to_end(key)
        while len(kept) > KEPT_PARCELS:
            self._drop(kept.popitem(last=False)[1])
        return parcel

    def _drop(self, parcel: Parcel) -> None:
        self._holders.pop(parcel.what.digest, None)
        others = (each.path for kept in self._parcels.values() for each in kept.values())
        if parcel.path is not None and parcel.path.parent == self._parcels_folder and parcel.path not in others:
            parcel.path.unlink(missing_ok=True)

    async def part(self, member: Member, run: Run, digest: Any, offset: Any, want: Any) -> dict[str, Any]:
        """`{"data"}`: up to `want` bytes of what was announced to the run's workers, from `offset` on."""
        kept = self._parcels.get(run.run_id, OrderedDict())
        parcel = next((each for each in kept.values() if each.what.digest == digest), None)
        if parcel is None:
            raise TransferGone("nothing of that digest was announced", digest=str(digest)[:64])
        size = parcel.what.size_bytes
        if type(offset) is not int or type(want) is not int or not 0 <= offset < size or not 0 < want <= MAX_PART_BYTES:
            raise UsageError(f"a part is of at most {MAX_PART_BYTES} bytes, from an offset below {size} on")
        data = await self._hub.in_executor(parcel.read, offset, min(want, size - offset))
        run.bytes_down += len(data)
        self._moves(run, member, "fetching", offset + len(data), size)
        if offset + len(data) < size:
            self._under_way[member.address] = digest
        else:
            self.fetched(member, digest)
        return {"data": data}

    # --- up -------------------------------------------------------------------------------------------------

    async def put(self, member: Member, lease: str, about: Any, offset: Any, data: Buffer) -> dict[str, Any]:
        """Takes one part of a lease's change. `{"have"}`: how many bytes are here from the beginning on; `{"refused"}`: nobody wants it."""
        run = self._expecting(member, lease)
        if run is None:
            return {"refused": "this lease is no longer yours"}
        what = announced(about, max_bytes=self._hub.change_limit(run))
        if type(offset) is not int or not 0 <= offset <= what.size_bytes or not len(data) <= min(MAX_PART_BYTES, what.size_bytes - offset):
            raise UsageError(f"a part is of at most {MAX_PART_BYTES} bytes and lies within what was announced")
        path = self._path(run, member, what)
        mine = f"{path.name.split('-')[0]}-*"
        have = await self._hub.in_executor(partial(partly.append, path, offset, data, siblings=mine, keep=KEPT_INCOMING))
        run.bytes_up += len(data)
        self._moves(run, member, "sending", have, what.size_bytes)
        return {"have": have}

    def _expecting(self, member: Member, lease: Any) -> Run | None:
        """The run that may still get the member's report of that lease."""
        run = self._hub.runs.get(member.held.get(lease, "")) if isinstance(lease, str) else None
        if run is not None:
            return run
        for each in self._hub.runs.values():
            old = each.entry.expired.get(lease) if each.entry is not None and isinstance(lease, str) else None
            if old is not None and old.member is member:
                return each
        return None

    def _path(self, run: Run, member: Member, what: Announced) -> Path:
        """A worker's own: what another one sends can't spoil it."""
        owner = hashlib.sha256(member.wallet.encode()).hexdigest()[:16]
        return self._incoming / checked_run_id(run.run_id) / f"{owner}-{what.digest}"

    async def received(self, run: Run, member: Member, about: Any) -> Buffer:
        """The change that was sent in parts, whole, read from its file as it is used. Raises CodecError when it isn't what it should be."""
        what = announced(about, max_bytes=self._hub.change_limit(run))
        return await self._hub.in_executor(partly.whole, self._path(run, member, what), what)

    def used(self, run: Run, member: Member, about: Any) -> None:
        """The report was answered, one way or the other."""
        with suppress(CodecError):
            self._path(run, member, announced(about)).unlink(missing_ok=True)

    # --- both -----------------------------------------------------------------------------------------------

    def _moves(self, run: Run, member: Member, what: str, done: int, size: int) -> None:
        tally = run.tallies.get(member.worker_id)
        if tally is not None:
            tally.moving = f"{what} {megabytes(done, size)}" if done < size else ""

    def forget(self, run_id: str) -> None:
        """The run has ended: nothing of it travels any more. (Files: call it off the event loop.)"""
        for parcel in self._parcels.pop(run_id, OrderedDict()).values():
            self._drop(parcel)
        shutil.rmtree(self._incoming / run_id, ignore_errors=True)

    def start(self, keep: Collection[str] = ()) -> None:
        """What an earlier hub left goes, but for the incoming changes of the runs in `keep`."""
        shutil.rmtree(self._parcels_folder, ignore_errors=True)
        for folder in self._incoming.glob("*"):
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
