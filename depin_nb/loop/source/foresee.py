"""Whether drawing further from an iterator may use the global random number generators, as far as can be seen without drawing.

With one worker the worker's generators go on from the kernel's, so a draw that moves them has to wait for all earlier iterations. What a
generator function can still reach from where it stands is read off its byte code, what an iterator of C holds from the collector.
"""

from __future__ import annotations

import dis
import gc
import inspect
import itertools
import types
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter
from torch.utils.data.distributed import DistributedSampler
from torch.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from ..find.definitions import is_user_code


class Foresight(IntEnum):
    """`NEVER`: it can't. `UNKNOWN`: nothing says so; one draw that is watched decides. `LIKELY`: it mentions something random."""

    NEVER = 0
    UNKNOWN = 1
    LIKELY = 2


_PARTS = ("rand", "shuffle", "permut", "choice", "manual_seed")
_WORDS = {
    "sample", "samples", "normal", "normal_", "uniform", "uniform_", "multinomial", "bernoulli", "bernoulli_", "exponential_", "gauss",
    "poisson", "dropout", "seed", "integers", "betavariate", "expovariate", "triangular", "default_rng",
}  # fmt: skip
_HARMLESS: tuple[type, ...] = (
    type(iter([])), type(iter(())), type(iter(range(0))), type(iter(range(2**70))), type(iter({})), type(iter({}.values())),
    type(iter({}.items())), type(iter("")), type(iter(b"")), type(iter(set())), type(reversed([])), itertools.count, itertools.repeat,
)  # fmt: skip
_MAX_DEPTH = 4


def foresee(iterator: Any, depth: int = 0) -> Foresight:
    """What the next draws from `iterator` may do to the global generators."""
    if isinstance(iterator, _HARMLESS):
        return Foresight.NEVER
    if depth > _MAX_DEPTH:
        return Foresight.UNKNOWN
    if isinstance(iterator, types.GeneratorType):
        return _of_generator(iterator, depth)
    if isinstance(iterator, _BaseDataLoaderIter):
        sampling = of_sampling(iterator)
        return max(sampling, Foresight.NEVER if iterator._num_workers else Foresight.UNKNOWN)
    if type(iterator).__module__ in ("builtins", "itertools"):
        held = [p for p in gc.get_referents(iterator) if not isinstance(p, type)]
        parts = [p for h in held for p in (h if type(h) is tuple else (h,))]
        return max((_of_held(part, depth + 1) for part in parts), default=Foresight.UNKNOWN)
    step = getattr(type(iterator), "__next__", None)
    return of_function(step, depth + 1, iterator) if isinstance(step, types.FunctionType) else Foresight.UNKNOWN


def of_sampling(iterator: Any) -> Foresight:
    """The same for a loader's iterator that has given its first batch, as to its indices alone."""
    if is_known_sampler(iterator._index_sampler):
        return Foresight.NEVER
    return foresee(iterator._sampler_iter)


def is_known_sampler(sampler: Any) -> bool:
    """Whether it is one of torch's, or a plain container: after their first index those leave the global generators alone."""
    if type(sampler) is BatchSampler:
        return is_known_sampler(sampler.sampler)
    if type(sampler) in (list, tuple, range, torch.Tensor, SequentialSampler, DistributedSampler):
        return True
    if type(sampler).__name__ == "_InfiniteConstantSampler":
        return True
    own = getattr(sampler, "generator", None) is not torch.default_generator
    return own and type(sampler) in (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def of_function(function: Any, depth: int = 0, owner: Any = None) -> Foresight:
    """The same for a call of a function of the user's, from its names and those of the functions that it calls."""
    if depth > _MAX_DEPTH or not isinstance(function, types.FunctionType) or not is_user_code(function.__code__):
        return Foresight.UNKNOWN
    names = set(_names(dis.get_instructions(function.__code__)))
    closed = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            closed[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return _of_names(names, {**function.__globals__, **closed}, [owner], depth)


def _of_held(part: Any, depth: int) -> Foresight:
    if isinstance(part, types.FunctionType):
        return of_function(part, depth)
    if isinstance(part, types.MethodType):
        return of_function(part.__func__, depth, part.__self__)
    if hasattr(part, "__next__"):
        return foresee(part, depth)
    return Foresight.NEVER if isinstance(part, (list, tuple, int, float, str, type(None), torch.Tensor)) else Foresight.UNKNOWN


def _of_generator(generator: types.GeneratorType[Any, Any, Any], depth: int) -> Foresight:
    frame = generator.gi_frame
    if frame is None:
        return Foresight.NEVER
    begun = inspect.getgeneratorstate(generator) != inspect.GEN_CREATED
    ahead = _ahead(frame.f_code, frame.f_lasti if begun else -1)
    space = {**frame.f_globals, **frame.f_locals}
    found = _of_names(set(_names(ahead)), space, list(frame.f_locals.values()), depth)
    inner = generator.gi_yieldfrom
    if inner is not None:
        found = max(found, foresee(inner, depth + 1))
    if any(i.opname in ("GET_ITER", "GET_YIELD_FROM_ITER") for i in ahead) and any(_draws(v) for v in frame.f_locals.values()):
        return Foresight.LIKELY
    return found


def _ahead(code: types.CodeType, at: int) -> list[dis.Instruction]:
    """The instructions that can still run after offset `at`: those behind it, and what jumps lead back to."""
    instructions = list(dis.get_instructions(code))
    start = at
    while True:
        jumps = [i.argval for i in instructions if i.offset >= start and "JUMP" in i.opname]
        back = [target for target in jumps if isinstance(target, int) and target < start]
        if not back:
            return [i for i in instructions if i.offset > start or (i.offset == start and start != at)]
        start = min(back)


def _names(instructions: Any) -> Iterator[str]:
    for instruction in instructions:
        value = instruction.argval
        if instruction.opname.startswith("LOAD_") and type(value) is str and instruction.opname != "LOAD_CONST":
            yield value
        elif isinstance(value, types.CodeType):
            yield from _names(dis.get_instructions(value))


def _of_names(names: set[str], space: dict[str, Any], owners: list[Any], depth: int) -> Foresight:
    if any(name in _WORDS or any(part in name.lower() for part in _PARTS) for name in names):
        return Foresight.LIKELY
    if {"iter", "next"} & names and any(_draws(space.get(name)) for name in names):
        return Foresight.LIKELY
    for owner in owners:
        attributes = getattr(owner, "__dict__", {})
        if any(_draws(attributes.get(name)) for name in names):
            return Foresight.LIKELY
        for name in names:
            method = getattr(type(owner), name, None)
            if isinstance(method, types.FunctionType) and of_function(method, depth + 1, owner) is Foresight.LIKELY:
                return Foresight.LIKELY
    for name in names:
        if of_function(space.get(name), depth + 1) is Foresight.LIKELY:
            return Foresight.LIKELY
    return Foresight.UNKNOWN


def _draws(value: Any) -> bool:
    """Whether going over `value` anew would draw a seed."""
    return isinstance(value, DataLoader) or (isinstance(value, Sampler) and not isinstance(value, SequentialSampler))
