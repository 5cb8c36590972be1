"""What a detached cell leaves: for the notebook that sent it, the content of the objects that changed; for any other, the names anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...core.state import State
from ...loop.ship.objects import Roots
from ...loop.whole.anchors import Anchors
from ...loop.whole.contents import content, kind_of
from ...loop.whole.fingerprints import fingerprint
from .copying import Opened, Reader, Storages, Writer, pack, unpack

FUNCTION, RESULT = "_detached_function_", "_detached_result_"  # a function trained in the background, and what it returned


@dataclass
class Before:
    """The process's copies as they came: to tell afterwards what the cell changed."""

    anchors: Anchors
    roots: Roots
    env: dict[str, Any]
    stored: frozenset[str]
    names: dict[str, Any] = field(init=False)
    prints: list[bytes] = field(init=False)
    deep: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.names = dict(self.env)
        self.prints = self.anchors.prints()
        self.deep = {n: fingerprint(v) for n, v in self.names.items()}

    def changed(self) -> list[int]:
        """Numbers of the objects whose own content is another one."""
        return [i for i, (a, b) in enumerate(zip(self.prints, self.anchors.prints(), strict=True)) if a != b]

    def touched(self) -> list[str]:
        """Names, there before, whose value or anything that it reaches is another one now."""
        return [n for n, digest in self.deep.items() if n not in self.env or fingerprint(self.env[n]) != digest]

    def new(self) -> dict[str, Any]:
        """Names that were made or bound anew."""
        return {n: v for n, v in self.env.items() if not n.startswith("__") and self._bound(n, v)}

    def _bound(self, name: str, value: Any) -> bool:
        return name not in self.names or value is not self.names[name] or (name in self.stored and _plain(value))


def _plain(value: Any) -> bool:
    return not kind_of(value)


@dataclass
class Left:
    """What was read back. `names`: bound or made by the cell; `contents` by number; `state`: optimizers and their kin by label."""

    names: dict[str, Any]
    contents: dict[int, Any]
    state: State
    generators: State
    touched: tuple[str, ...]
    deleted: tuple[str, ...]
    missing: tuple[str, ...]
    error: BaseException | None
    modules: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    anew: bool = False


def write(before: Before, error: BaseException | None) -> bytes:
    """All that the cell left, as bytes; what can't be copied is named among `missing`."""
    changed, new = before.changed(), before.new()
    stateful = {"optimizer", "scheduler", "scaler"}
    kinds = {i: kind_of(before.anchors.objects[i]) for i in changed}
    contents = {i: _loose(content(before.anchors.objects[i])) for i in changed if kinds[i] not in (*stateful, "code", "")}
    moved = {id(before.anchors.objects[i]) for i in changed if kinds[i] in stateful}
    roots = Roots(
        optimizers={k: v for k, v in before.roots.optimizers.items() if id(v) in moved},
        schedulers={k: v for k, v in before.roots.schedulers.items() if id(v) in moved},
        scalers={k: v for k, v in before.roots.scalers.items() if id(v) in moved},
    )
    touched = before.touched()
    anew = {n: before.env[n] for n in (*touched, *new) if n in before.env}
    storages = Storages()

    def writer(*, own: bool) -> Writer:
        return Writer(storages, space=before.env, env={}, number=before.anchors.number if own else _nothing)

    missing: list[str] = []
    new = _copyable(new, lambda: Writer(Storages(), space=before.env, env={}, number=before.anchors.number), missing)
    contents = {i: _content_copyable(held, before, missing) for i, held in contents.items()}
    anew = _copyable(anew, lambda: Writer(Storages(), space=before.env, env={}), missing)
    graphs = {
        "own": writer(own=True).graph({"names": new, "contents": contents}),
        "anew": writer(own=False).graph(anew),
    }
    try:
        graphs["error"] = writer(own=True).graph(error)
    except Exception:  # an exception that holds what can't be copied: its text travels in the outcome
        graphs["error"] = writer(own=True).graph(None)
    modules = {n: {k: storages.add(t) for k, t in _tensors(v).items()} for n, v in anew.items() if isinstance(v, torch.nn.Module)}
    return pack(
        storages,
        graphs,
        state=roots.read({}, rng=False).to_bytes(),
        generators=Roots().read({}, rng=True).to_bytes(),
        touched=sorted(touched),
        deleted=sorted(n for n in before.names if n not in before.env),
        missing=sorted(set(missing)),
        modules=modules,
    )


def _nothing(value: Any) -> None:  # noqa: ARG001
    return None


def _loose(held: Any) -> Any:
    """A content that isn't the object itself, which would be written as its number alone."""
    if isinstance(held, torch.Tensor):
        return held.detach().requires_grad_(held.requires_grad and held.is_leaf)
    return held.view() if isinstance(held, np.ndarray) else held


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: t for k, t in module.state_dict(keep_vars=True).items() if kind_of(t) == "tensor"}


def _copyable(values: dict[Any, Any], writer: Callable[[], Writer], missing: list[str]) -> dict[Any, Any]:
    """Those of the values that can be copied; the names of the others go to `missing`."""
    try:
        writer().graph(values)
        return values
    except Exception:
        kept = {}
    for name, value in values.items():
        try:
            writer().graph(value)
            kept[name] = value
        except Exception:
            missing.append(str(name))
    return kept


def _content_copyable(held: Any, before: Before, missing: list[str]) -> Any:
    def writer() -> Writer:
        return Writer(Storages(), space=before.env, env={}, number=before.anchors.number)

    return _copyable(held, writer, missing) if isinstance(held, dict) else held


def read(data: bytes, *, anchors: Anchors | None, present: dict[str, Any] | None = None) -> Left:
    """Opens what a detached process of this user wrote. `anchors`: the notebook's own objects, None in another kernel; there `present` are
    the names that are there, whose modules of the same shape lend their tensors. Raises CodecError and what unpickling raises."""
    opened, graphs, more = unpack(data)
    own = anchors is not None
    if own:
        assert anchors is not None
        objects = anchors.objects
        found = Reader(graphs["own"], opened, objects.__getitem__).load()
    else:
        lent = _lent(more["modules"], opened, present or {})
        found = {"names": Reader(graphs["anew"], _Lending(opened, lent), _no_anchor).load(), "contents": {}}
    try:
        error = Reader(graphs["error"], opened, objects.__getitem__ if own else _no_anchor).load()
    except Exception:  # of a class that only the run had, or one that can't be made again: its outcome tells kind, message and traceback
        error = None
    modules = {
        name: {key: opened.tensor(number) for key, number in keys.items()} for name, keys in (more["modules"] if not own else {}).items()
    }
    return Left(
        names=found["names"],
        contents=found["contents"],
        state=State.from_bytes(more["state"]),
        generators=State.from_bytes(more["generators"]),
        touched=tuple(more["touched"]),
        deleted=tuple(more["deleted"]),
        missing=tuple(more["missing"]),
        error=error if isinstance(error, BaseException) else None,
        modules=modules,
        anew=not own,
    )


class _Lending(Opened):
    """Tensors that the notebook has already stand for those of the file."""

    def __init__(self, opened: Opened, lent: dict[int, torch.Tensor]) -> None:
        self.opened, self.lent = opened, lent

    def tensor(self, index: int) -> torch.Tensor:
        return self.lent[index] if index in self.lent else self.opened.tensor(index)


def _lent(modules: dict[str, dict[str, int]], opened: Opened, present: dict[str, Any]) -> dict[int, torch.Tensor]:
    lent: dict[int, torch.Tensor] = {}
    for name, keys in modules.items():
        here = present.get(name)
        if isinstance(here, torch.nn.Module):
            tensors = _tensors(here)
            if set(tensors) == set(keys) and all(tensors[k].shape == opened.tensor(i).shape for k, i in keys.items()):
                lent.update({i: tensors[k] for k, i in keys.items()})
    return lent


def _no_anchor(number: int) -> Any:
    raise LookupError(f"object {number} isn't in this kernel")
