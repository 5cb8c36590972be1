"""A run's state: every tensor and plain value that training changes, by slot name. The unit that is shipped, merged and journalled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .codec import decode, encode_parts
from .errors import CodecError
from .parts import Buffer

if TYPE_CHECKING:
    import torch

PARAM = "param"  # changed by steps: merged by the strategy's outer step
BUFFER = "buffer"  # float buffer such as BatchNorm's running mean: sample-weighted mean
COUNTER = "counter"  # integer buffer such as num_batches_tracked: sum of changes
INNER = "inner"  # float state of the user's optimizer: kept by each worker, averaged at the loop's end
STEP = "step"  # step counters of the user's optimizer: maximum
CARRIED = "carried"  # a tensor that one iteration hands to the next (solo only), gradients among them
RNG = "rng"  # random number generators (solo only)
ALIGN_BYTES = 64  # of a tensor in a file: any dtype's, and a cache line
KINDS = (PARAM, BUFFER, COUNTER, INNER, STEP, CARRIED, RNG)


@dataclass
class State:
    """`tensors`: slot -> CPU tensor, `kinds`: slot -> one of KINDS, `plain`: name -> codec-plain value (learning rates, schedulers).

    Slots are named as the user names things: `model/fc1.weight`, `optimizer/3/exp_avg`, `rng/torch`.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def to_bytes(self) -> bytes:
        return b"".join(self.to_parts())

    def to_parts(self) -> Iterator[bytes | memoryview]:
        """`to_bytes` in pieces, without copies; `tensors` may hold `codec.Promised` ones. Aligned, so that it can be shared."""
        return encode_parts({"tensors": self.tensors, "kinds": self.kinds, "plain": self.plain}, align=ALIGN_BYTES)

    @classmethod
    def from_bytes(cls, data: Buffer, *, max_bytes: int | None = None, share: bool = False) -> State:
        """Raises CodecError unless the bytes hold a well-formed state. `share`: its tensors lie in `data` where that is writable."""
        import torch

        value = decode(data, max_bytes=max_bytes, share=share)
        if type(value) is not dict or set(value) != {"tensors", "kinds", "plain"}:
            raise CodecError("not a state")
        tensors, kinds, plain = value["tensors"], value["kinds"], value["plain"]
        if not all(type(part) is dict for part in (tensors, kinds, plain)) or set(tensors) != set(kinds):
            raise CodecError("a state's parts don't fit together")
        if not all(isinstance(t, torch.Tensor) for t in tensors.values()) or not all(k in KINDS for k in kinds.values()):
            raise CodecError("a state's slots are malformed")
        return cls(tensors, kinds, plain)
