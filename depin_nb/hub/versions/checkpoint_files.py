"""Checkpoints on disk: a folder for each version, in open formats. They load in plain PyTorch without this package.

`<folder>/<run>/checkpoints/<version>/`: `<model>.safetensors` by the model's name in the notebook, with the keys of its `state_dict()`;
`<optimizer>.safetensors` with keys `<parameter's index>/<name>`; `other.safetensors` (free tensors, generators); `checkpoint.json`.
Format of the tensors: https://huggingface.co/docs/safetensors (safetensors 0.4 and newer).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depin_nb.core.codec import TORCH_DTYPES
from depin_nb.core.errors import CheckpointError
from depin_nb.core.state import BUFFER, COUNTER, INNER, PARAM, STEP, State
from depin_nb.hub.versions.states import checked_run_id

if TYPE_CHECKING:
    import torch

FORMAT = 1
INFO = "checkpoint.json"
#: what safetensors carries of the codec's types (all but complex128)
DTYPES = frozenset(TORCH_DTYPES) - {"complex128"}
MAX_INFO_BYTES = 16 << 20
_VERSION = re.compile(r"\d{6,12}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}\.safetensors")


@dataclass(frozen=True)
class Told:
    """What `checkpoint.json` says of a version beside its tensors.

    `iteration`: iterations merged so far, over all passes; `loss`: mean of the points merged since the checkpoint before, None without any.
    `program`: sha256 of the loop's program, `source`: of the cell's text. `at`: wall time, seconds.
    """

    run: str
    version: int
    entry: int
    iteration: int
    samples: int
    loss: float | None
    at: float
    program: str = ""
    source: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole on disk. `files`: name -> sha256; `models`, `optimizers`: the notebook's name -> file."""

    path: Path
    told: Told
    torch_version: str
    files: dict[str, str] = field(repr=False)
    models: dict[str, str]
    optimizers: dict[str, str]

    @property
    def version(self) -> int:
        return self.told.version

    @property
    def loss(self) -> float | None:
        return self.told.loss

    def state_dict(self, model: str | None = None) -> dict[str, torch.Tensor]:
        """Weights and buffers, as `load_state_dict` takes them. `model`: its name in the notebook, not needed where there was one.

        Raises KeyError with the names that there are, CheckpointError when the file isn't what was written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if model is None and len(self.models) == 1:
            (model,) = self.models
        if model not in self.models:
            raise KeyError(f"{self.path} holds {', '.join(sorted(self.models)) or 'no model'}; name one of them")
        name = self.models[model]
        try:
            data = (self.path / name).read_bytes()
            if sha256(data).hexdigest() != self.files[name]:
                raise ValueError("its bytes aren't those that were written")
            return load(data)
        except (OSError, ValueError, SafetensorError) as error:
            raise _unusable(self.path / name, error) from error

    def whole(self) -> bool:
        """Whether every file's bytes are those that were written."""
        try:
            return all(_digest(self.path / name) == digest for name, digest in self.files.items())
        except OSError:
            return False


class CheckpointFiles:
    """`folder`: the one that holds a folder for each run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run_id: str) -> Path:
        return self.folder / checked_run_id(run_id) / "checkpoints"

    def write(self, state: State, told: Told) -> Path:
        """Writes a checkpoint, whole or not at all; one of that version that is there already stays. Returns its folder. Raises OSError."""
        parent = self.path(told.run)
        final = parent / f"{told.version:06d}"
        if final.exists():
            return final
        temporary = parent / f".{told.version:06d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        _make(temporary)
        try:
            self._fill(temporary, state, told)
            _sync(temporary)
            temporary.rename(final)
            _sync(parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final

    @staticmethod
    def _fill(folder: Path, state: State, told: Told) -> None:
        import torch
        from safetensors.torch import save_file

        layout = lay_out(state)
        digests = {}
        for name, tensors in layout.files.items():
            save_file(_apart(tensors), folder / name, metadata={"format": "pt", "run": told.run, "version": str(told.version)})
            digests[name] = _digest(folder / name)
            _sync(folder / name)
        info = {
            "format": FORMAT, **asdict(told), "torch": torch.__version__, "files": digests, "models": layout.models,
            "optimizers": layout.optimizers, "plain": layout.plain, "left_out": layout.left_out,
        }  # fmt: skip
        _write(folder / INFO, json.dumps(info, indent=1, allow_nan=False).encode())

    def all(self, run_id: str) -> list[Checkpoint]:
        """The checkpoints that can be read, by version; what a killed write left is none."""
        found = []
        for path in self.path(run_id).glob("*"):
            if _VERSION.fullmatch(path.name):
                try:
                    found.append(read(path))
                except CheckpointError:
                    continue
        return sorted(found, key=lambda c: c.version)

    def keep(self, run_id: str, last: int) -> None:
        """Removes all but the `last` newest and the best by loss, and what a killed write left."""
        found = self.all(run_id)
        kept = {c.path.name for c in found[max(0, len(found) - last) :]} | {c.path.name for c in [best(found)] if c is not None}
        for path in self.path(run_id).glob("*"):
            own = path.name.endswith(f".{os.getpid()}.tmp")  # being written, perhaps
            if path.name not in kept and (_VERSION.fullmatch(path.name) or (path.name.endswith(".tmp") and not own)):
                shutil.rmtree(path, ignore_errors=True)


def best(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """The one of the lowest loss, the newest among equals; None when none has a loss."""
    with_loss = [c for c in found if c.loss is not None]
    return min(with_loss, key=lambda c: (c.loss, -c.version), default=None)


def newest_whole(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """The newest one whose bytes are all as written."""
    return next((c for c in sorted(found, key=lambda c: -c.version) if c.whole()), None)


def read(path: Path) -> Checkpoint:
    """What a checkpoint's folder says of itself. Raises CheckpointError for one that isn't whole or isn't one."""
    try:
        file = path / INFO
        if file.stat().st_size > MAX_INFO_BYTES:
            raise ValueError(f"{INFO} is larger than any that was written")
        info = json.loads(file.read_bytes())
        if type(info) is not dict or info.get("format") != FORMAT:
            raise ValueError(f"{INFO} isn't of format {FORMAT}")
        told = Told(**{f.name: info[f.name] for f in fields(Told)})
        kinds = (told.run, str), (told.version, int), (told.entry, int), (told.iteration, int), (told.samples, int)
        if not all(type(value) is kind for value, kind in kinds) or not isinstance(told.loss, (float, int, type(None))):
            raise ValueError(f"{INFO} has values of wrong types")
        files = _texts(info["files"])
        models, optimizers = _texts(info["models"]), _texts({k: v["file"] for k, v in dict(info["optimizers"]).items() if v["file"]})
        if not all(_FILE.fullmatch(name) for name in files) or not {*models.values(), *optimizers.values()} <= files.keys():
            raise ValueError(f"{INFO} names files that can't be its own")
        return Checkpoint(path, told, str(info["torch"]), files, models, optimizers)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unusable(path, error) from error


@dataclass(frozen=True)
class Layout:
    """Which tensor goes into which file, by key; and what isn't a tensor, as JSON. `left_out`: slots of types that safetensors lacks."""

    files: dict[str, dict[str, torch.Tensor]]
    models: dict[str, str]
    optimizers: dict[str, dict[str, Any]]
    plain: dict[str, Any]
    left_out: list[str]


def lay_out(state: State) -> Layout:
    """A state's slots as files. Pure."""
    made = Layout({}, {}, {}, {}, [])
    names: dict[str, str] = {}
    optimizers = [key.removesuffix("/groups") for key in state.plain if key.endswith("/groups")]

    def put(file: str, key: str, tensor: torch.Tensor) -> bool:
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            made.left_out.append(key)
            return False
        made.files.setdefault(file, {})[key] = tensor
        return True

    def file_of(label: str) -> str:
        if label not in names:
            fits = _NAME.fullmatch(label) and label != "other" and label.lower() not in map(str.lower, names)
            names[label] = f"{label if fits else f'part-{len(names) + 1}'}.safetensors"
        return names[label]

    for slot, tensor in state.tensors.items():
        label, _, key = slot.partition("/")
        if label in optimizers and state.kinds[slot] in (INNER, STEP):
            put(file_of(label), key, tensor)
        elif key and state.kinds[slot] in (PARAM, BUFFER, COUNTER) and label != "tensors":
            if put(file_of(label), key, tensor):
                made.models[label] = file_of(label)
        else:
            put("other.safetensors", slot, tensor)
    inside: list[torch.Tensor] = []
    for key, value in state.plain.items():
        made.plain[key] = _json(value, inside)
    for number, tensor in enumerate(inside):
        put("other.safetensors", f"plain/{number}", tensor)
    for label in optimizers:
        file = names.get(label, "")
        groups, state_of = made.plain.pop(f"{label}/groups"), made.plain.pop(f"{label}/state", {})
        made.optimizers[label] = {"file": file if file in made.files else "", "groups": groups, "state": state_of}
    return made


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as safetensors takes them: contiguous, and none in another's memory."""
    seen: set[int] = set()
    made = {}
    for key, tensor in tensors.items():
        at = tensor.untyped_storage().data_ptr()
        made[key] = tensor.clone() if at in seen and tensor.numel() else tensor.contiguous()
        seen.add(at)
    return made


def _json(value: Any, tensors: list[torch.Tensor]) -> Any:
    """A codec-plain value for people and for JSON; a tensor by its key in `other.safetensors`."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": f"plain/{len(tensors) - 1}"}
    if isinstance(value, Mapping):
        return {str(k): _json(v, tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v, tensors) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.tolist() if hasattr(value, "tolist") else value.hex() if isinstance(value, bytes) else str(value)


def _texts(value: Any) -> dict[str, str]:
    if type(value) is not dict or not all(type(k) is str and type(v) is str for k, v in value.items()):
        raise ValueError("names and files are texts")
    return value


def _unusable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"the checkpoint {path} can't be used: {error}", path=str(path))


def _make(folder: Path) -> None:
    missing: Iterator[Path] = (p for p in (*reversed(folder.parents), folder) if not p.exists())
    for path in missing:
        path.mkdir(mode=0o700, exist_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    found = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
