"""Datasets that a worker builds itself: class and arguments travel, and what the first sample is, so that a worker can tell whether its
data is the same. And what stands on a worker for a dataset whose samples travel with the leases.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import pickle
import random
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...core.codec import can_encode, encode
from ...core.errors import DatasetDiffers, ShipError
from ..generators import Snapshot

_SAMPLE_SEED = 20011  # any: both sides seed with it, so that a random transform gives one sample on both


class Absent(Dataset[Any]):
    """Stands on a worker for a dataset whose samples travel with the leases: it has its length."""

    def __init__(self, length: int | None, name: str) -> None:
        self._length, self._name = length, name

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(f"object of type '{self._name}' has no len()")
        return self._length

    def __getitem__(self, index: Any) -> Any:
        raise ShipError(
            f"the loop's body reads the {self._name} itself, but only the samples of each lease are on the worker",
            name=self._name,
            kind="dataset",
            hint="Use `--data whole`, or read what you need from the batch.",
        )


def absent(dataset: Any) -> Any:
    """The reduction of a dataset whose samples travel."""
    return Absent, (_length(dataset), type(dataset).__name__)


def leaves_of(dataset: Any, depth: int = 0) -> list[Any]:
    """The datasets at the bottom of Subset, ConcatDataset and other wrappers: those that hold no further one."""
    inner: list[Any] = []
    for value in vars(dataset).values():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
        inner += [part for part in parts if isinstance(part, Dataset)]
    if not inner or depth > 8:
        return [dataset]
    return [leaf for part in inner for leaf in leaves_of(part, depth + 1)]


def recipe(dataset: Any) -> Any:
    """The reduction of a dataset that workers build: class, arguments, length and the first sample's digest.

    The arguments are those of `dataset.depin_arguments()` (a dict of keywords) where it has such a method, else the attributes that
    are named as the parameters of `__init__`. Raises ShipError naming a parameter that can't be found.
    """
    return build, (type(dataset), arguments_of(dataset), _length(dataset), first_digest(dataset))


def arguments_of(dataset: Any) -> dict[str, Any]:
    """Keywords that build an equal dataset."""
    own = getattr(dataset, "depin_arguments", None)
    if own is not None:
        given = own()
        if type(given) is not dict:
            raise ShipError(
                f"{type(dataset).__name__}.depin_arguments() gives a {type(given).__name__}, not a dict of keywords",
                name=type(dataset).__name__,
                kind="dataset",
            )
        return given
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(dataset)).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        value = vars(dataset).get(name, vars(dataset).get(f"_{name}", parameter.default))
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) or value is parameter.empty:
            raise ShipError(
                f"a worker can't build a {type(dataset).__name__} itself: its argument `{name}` can't be found in the dataset",
                name=name,
                kind="dataset",
                hint=f"Keep it as `self.{name}`, or give the class a method depin_arguments() that returns the keywords; "
                "or use `--data whole` or `--data samples`.",
            )
        found[name] = value
    return found


def build(kind: type, arguments: dict[str, Any], length: int | None, digest: str) -> Any:
    """On a worker: the dataset, from the worker's own files. Raises DatasetDiffers where it isn't the notebook's."""
    where = _places(kind, arguments)
    before = Snapshot.now()
    try:
        dataset = kind(**arguments)
        found, first = _length(dataset), first_digest(dataset)
    except Exception as error:
        raise DatasetDiffers(
            f"the worker can't build {where}: {type(error).__name__}: {error}", place=where, problem=type(error).__name__
        ) from error
    finally:
        before.restore()
    if found != length:
        raise DatasetDiffers(f"{where} has {found} samples on the worker and {length} in the notebook", place=where, problem="length")
    if first != digest:
        raise DatasetDiffers(f"{where} has another first sample on the worker than in the notebook", place=where, problem="sample 0")
    return dataset


def first_digest(dataset: Any) -> str:
    """sha256 of sample 0, fetched with seeded generators; "" for an empty dataset. The generators are as before afterwards."""
    if _length(dataset) == 0:
        return ""
    before = Snapshot.now()
    torch.manual_seed(_SAMPLE_SEED)
    random.seed(_SAMPLE_SEED)
    np.random.seed(_SAMPLE_SEED)
    try:
        sample = dataset[0]
    finally:
        before.restore()
    return hashlib.sha256(encode(sample) if can_encode(sample) else pickle.dumps(sample, protocol=5)).hexdigest()


def _places(kind: type, arguments: dict[str, Any]) -> str:
    paths = [f"{name}={os.fspath(v)!r}" for name, v in arguments.items() if isinstance(v, (str, os.PathLike)) and str(v)]
    return f"{kind.__name__}({', '.join(paths)})"


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


# --- while a program is pickled ---------------------------------------------------------------------------

_standing: ContextVar[dict[int, tuple[Any, Any]]] = ContextVar("standing", default={})  # noqa: B039  # never changed in place


@contextlib.contextmanager
def standing_in(reductions: dict[int, tuple[Any, Any]]) -> Iterator[None]:
    """For as long as a program is pickled: datasets by id are reduced as given."""
    token = _standing.set(reductions)
    try:
        yield
    finally:
        _standing.reset(token)


def stand_in(obj: Any) -> Any:
    """The reduction of a dataset that doesn't travel whole; None for everything else."""
    found = _standing.get().get(id(obj))
    return None if found is None or found[0] is not obj else found[1]
