"""A run as a folder that can be carried to another hub: its format, and what of such a folder is believed.

`run.json` names the runs and every file with its size and sha256; `rows` holds the journal's and the ledger's rows (codec bytes); the
files lie as in a state folder: `states/`, `replays/`, `blobs/`, `runs/<run>/checkpoints/`. No keys. A folder comes from anywhere: only
files that `run.json` names are opened, each only where a hub itself would put it, none through a link, and never more bytes than said.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from depin_nb.core.errors import RunFolderError

FORMAT = 1
MANIFEST, ROWS = "run.json", "rows"
MAX_MANIFEST_BYTES = 16 << 20
MAX_ROWS_BYTES = 128 << 20
MAX_FILES = 100_000
MAX_BYTES = 256 << 30  # of a whole folder
MAX_PARTS = 1000
BLOCK_BYTES = 1 << 20
_RUN = r"[A-Za-z0-9_-]{1,64}"
RUN_ID = re.compile(_RUN)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAMES = (
    re.compile(rf"states/(?P<run>{_RUN})/v\d{{6,12}}\.(state|outer)"),
    re.compile(rf"replays/(?P<run>{_RUN})/v\d{{6,12}}\.logs"),
    re.compile(rf"runs/(?P<run>{_RUN})/checkpoints/\d{{6,12}}/([A-Za-z0-9_][A-Za-z0-9_.-]{{0,119}}\.safetensors|checkpoint\.json)"),
    re.compile(r"blobs/(?P<digest>[0-9a-f]{64})"),
)


@dataclass(frozen=True)
class FileFact:
    """A file of the folder. `name`: its path within, with `/`; `nbytes`, `digest` (sha256): what it must have."""

    name: str
    nbytes: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """`parts`: the run and those that it continues, oldest first."""

    parts: tuple[str, ...]
    files: tuple[FileFact, ...]

    @property
    def run_id(self) -> str:
        return self.parts[-1]

    def to_bytes(self) -> bytes:
        told = {"format": FORMAT, "parts": self.parts, "files": [[f.name, f.nbytes, f.digest] for f in self.files]}
        return json.dumps(told, indent=1).encode()


def read_manifest(folder: Path) -> Manifest:
    """What `run.json` says, checked: names that a hub would give, sizes within bounds. Raises RunFolderError."""
    try:
        value = json.loads(read_bounded(folder, MANIFEST, MAX_MANIFEST_BYTES))
        if type(value) is not dict or value.get("format") != FORMAT:
            raise ValueError(f"its format isn't {FORMAT}")
        parts, files = value["parts"], value["files"]
        if type(parts) is not list or not 0 < len(parts) <= MAX_PARTS or len(set(parts)) != len(parts):
            raise ValueError("its runs can't be read")
        if not all(type(p) is str and RUN_ID.fullmatch(p) for p in parts):
            raise ValueError("it names what can't be a run")
        if type(files) is not list or len(files) > MAX_FILES:
            raise ValueError("its list of files can't be read")
        facts = tuple(_fact(entry, parts) for entry in files)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunFolderError(f"{folder} isn't a run's folder: {error}", path=str(folder)) from error
    if len({f.name for f in facts}) != len(facts) or sum(f.nbytes for f in facts) > MAX_BYTES:
        raise RunFolderError(f"{folder} names a file twice, or more than {MAX_BYTES >> 30} GiB", path=str(folder))
    return Manifest(tuple(parts), facts)


def _fact(entry: Any, parts: list[str]) -> FileFact:
    name, nbytes, digest = entry
    if type(name) is not str or type(nbytes) is not int or type(digest) is not str or nbytes < 0 or not _DIGEST.fullmatch(digest):
        raise ValueError("a file's entry is malformed")
    if name == ROWS:
        if nbytes > MAX_ROWS_BYTES:
            raise ValueError("more rows than a run has")
        return FileFact(name, nbytes, digest)
    found = next((m for pattern in _NAMES if (m := pattern.fullmatch(name))), None)
    if found is None:
        raise ValueError(f"{name[:100]!r} is no file of a run")
    told = found.groupdict()
    if told.get("run", parts[0]) not in parts or told.get("digest", digest) != digest:
        raise ValueError(f"{name[:100]!r} is another run's, or not what its name says")
    return FileFact(name, nbytes, digest)


def blocks(folder: Path, name: str) -> Iterator[bytes]:
    """A file's bytes. Raises RunFolderError for one that isn't an ordinary file inside the folder."""
    path = folder / name
    try:
        inside = path.parent.resolve(strict=True)
        if not inside.is_relative_to(folder.resolve(strict=True)) or inside != folder.resolve() / Path(name).parent:
            raise OSError(errno.ELOOP, "it is behind a link")
        # neither a link nor a pipe, for which opening would wait
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RunFolderError(f"{name} of {folder} can't be read: {error.strerror}", path=str(path)) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RunFolderError(f"{name} of {folder} is not an ordinary file", path=str(path))
        while block := file.read(BLOCK_BYTES):
            yield block


def read_bounded(folder: Path, name: str, most: int) -> bytes:
    """A file of at most `most` bytes."""
    data = bytearray()
    for block in blocks(folder, name):
        data += block
        if len(data) > most:
            raise RunFolderError(f"{name} of {folder} is larger than {most} bytes", path=str(folder / name))
    return bytes(data)


def copy(folder: Path, fact: FileFact, to: Path) -> None:
    """Copies a file to `to`, synced, whole or not at all. Raises RunFolderError when it isn't what `fact` says, OSError from writing."""
    found, size = sha256(), 0
    to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for block in blocks(folder, fact.name):
                size += len(block)
                if size > fact.nbytes:
                    break
                found.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if size != fact.nbytes or found.hexdigest() != fact.digest:
            raise RunFolderError(f"{fact.name} of {folder} isn't the file that was exported", path=str(folder / fact.name))
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)


def fact_of(folder: Path, name: str) -> FileFact:
    """Size and digest of a file that is there."""
    found, size = sha256(), 0
    for block in blocks(folder, name):
        found.update(block)
        size += len(block)
    return FileFact(name, size, found.hexdigest())
