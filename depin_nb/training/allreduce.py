"""Per-step gradient averaging of `sync` gangs: gradients as bytes, their weighted mean, and who has arrived at which step.

Gradients travel bit-exactly in their own dtype, so that N ranks take the large batch's step (to 1e-9 in float64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError, DepinError

if TYPE_CHECKING:
    import torch


class OutOfStep(DepinError):
    """A rank of a gang said something at the wrong step. Fields: rank, step, expected."""

    default_hint = (
        "The gang is given up and its leases are run again; a body whose number of backward() calls differs by rank needs --strategy local."
    )


def encode_grads(grads: Sequence[torch.Tensor | None]) -> bytes:
    """Gradients in parameter order, None where a parameter has none; sparse ones become dense."""
    return encode([None if g is None else g.to_dense() if g.is_sparse else g for g in grads])


def decode_grads(
    data: bytes | bytearray | memoryview, *, max_bytes: int, like: Sequence[torch.Tensor | None] | None = None
) -> list[torch.Tensor | None]:
    """What `encode_grads` wrote. Raises CodecError for anything else.

    With `like` (the first rank's gradients, or the parameters) the number, shapes and dtypes have to agree wherever both have a tensor.
    """
    import torch

    grads = decode(data, max_bytes=max_bytes)
    if type(grads) is not list or not all(g is None or isinstance(g, torch.Tensor) for g in grads):
        raise CodecError("not gradients")
    if like is not None:
        _agree(grads, like)
    return grads


def mean_gradients(parts: Sequence[tuple[float, Sequence[torch.Tensor | None]]]) -> list[torch.Tensor | None]:
    """The mean of each gradient over `(weight, gradients)` parts, in the gradients' own dtype; None where no part has one.

    A part that lacks a gradient counts as zeros. Weights are samples: finite, not negative, at least one positive. 16-bit and smaller
    types are summed in float32. Parts are summed in the order given: pass them by rank. Raises CodecError when parts don't agree.
    """
    import torch

    weights = [float(weight) for weight, _ in parts]
    total = math.fsum(weights)
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not 0 < total < math.inf:
        raise CodecError("weights of gradients have to be finite, not negative, and not all zero")
    for _, grads in parts[1:]:
        _agree(grads, parts[0][1])
    means: list[torch.Tensor | None] = []
    for place in range(len(parts[0][1])):
        mean: torch.Tensor | None = None
        like: torch.Tensor | None = None
        for weight, (_, grads) in zip(weights, parts, strict=True):
            grad = grads[place]
            if grad is None:
                continue
            if like is None or mean is None:
                like, mean = grad, torch.zeros_like(grad, dtype=_sum_dtype(grad))
            elif grad.shape != like.shape or grad.dtype != like.dtype:  # where the first part has none
                raise CodecError("gradients of one parameter differ in shape or dtype")
            mean.add_(grad.to(mean.dtype), alpha=weight / total)
        means.append(None if mean is None or like is None else mean.to(like.dtype))
    return means


def _sum_dtype(grad: torch.Tensor) -> torch.dtype:
    import torch

    if not (grad.dtype.is_floating_point or grad.dtype.is_complex):
        raise CodecError(f"a gradient of dtype {grad.dtype} can't be averaged")
    return torch.float32 if grad.dtype.is_floating_point and grad.element_size() < 4 else grad.dtype


def _agree(grads: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor | None]) -> None:
    if len(grads) != len(like):
        raise CodecError(f"{len(grads)} gradients where {len(like)} were expected")
    for g, other in zip(grads, like, strict=True):
        if g is not None and other is not None and (g.shape != other.shape or g.dtype != other.dtype):
            raise CodecError("gradients of one parameter differ in shape or dtype")


@dataclass(frozen=True)
class Gang:
    """Where the ranks of one gang stand, without any I/O: each method returns the next state.

    A step is one reduction, named by a number that every rank computes alike and that only grows (gaps are fine). A step is ready once
    each rank that takes part in it has arrived; the next one begins with the first rank that comes to it. A rank that is done with its
    lease leaves: later steps don't wait for it (a short last group).
    """

    size: int
    step: int = -1  # the step that is being collected or was answered last; -1 before the first
    present: frozenset[int] = frozenset()  # ranks that have arrived at it
    left: frozenset[int] = frozenset()
    aborted: str = ""  # why, once it is

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("a gang has at least one rank")

    def arrive(self, rank: int, step: int, size: int | None = None) -> Gang:
        """`rank` hands in its part of `step`; `size` as in `ready`, for the step before.

        Raises OutOfStep for an unknown rank, one that left or came to this step before, a step that is over, and one that begins while
        others still wait at an earlier one (their bodies differ in the number of backward passes).
        """
        begins = step > self.step and (self.step < 0 or self.ready(self.step, size))
        known = 0 <= rank < self.size and rank not in self.left
        if self.aborted or not known or step < 0 or not (begins or (step == self.step and rank not in self.present)):
            raise OutOfStep(f"rank {rank} of a gang of {self.size} came with step {step}", rank=rank, step=step, expected=self.step)
        return replace(self, step=step, present=frozenset({rank}) if begins else self.present | {rank})

    def leave(self, rank: int) -> Gang:
        """`rank` has handed in its lease."""
        return replace(self, left=self.left | {rank})

    def abort(self, reason: str) -> Gang:
        """Gives the gang up; the first reason stays."""
        return self if self.aborted else replace(self, aborted=reason or "aborted")

    def ready(self, step: int, size: int | None = None) -> bool:
        """Whether `step` can be averaged; `size`: how many ranks (the first ones) take part in it, where known (`Lease.group_size`)."""
        taking_part = range(self.size if size is None else min(size, self.size))
        return not self.aborted and bool(self.ranks(step)) and all(r in self.present or r in self.left for r in taking_part)

    def ranks(self, step: int) -> tuple[int, ...]:
        """The ranks that have arrived at `step`, in order; none when it isn't the one being collected."""
        return tuple(sorted(self.present)) if step == self.step else ()
