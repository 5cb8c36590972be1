"""A receipt for each accepted lease, and the Merkle tree that one 32-byte root in a memo commits them by.

The tree follows RFC 6962, section 2.1 (Certificate Transparency): leaves and nodes are hashed under different prefixes, so that a node
can never pass for a leaf, and a tree of n leaves splits at the largest power of two below n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError

LEAF = b"\x00"  # RFC 6962, section 2.1
NODE = b"\x01"
DOMAIN = b"depin-nb receipt v1\x00"
MAX_BYTES = 4096


@dataclass(frozen=True)
class Receipt:
    """One accepted lease: who did what, and what it earned.

    `first`, `count`: the iterations (index of the first, how many). `flops`: counted by the probe, never claimed by the worker.
    `units_dpn`: DPN base units earned. `version`: the merge that holds the work; -1 = accepted and paid, but not merged.
    `wallet`: base58 pubkey that is paid. `at`: wall time in whole milliseconds.
    """

    run_id: str
    lease_id: str
    worker_id: str
    wallet: str
    entry: int
    first: int
    count: int
    samples: int
    flops: int
    units_dpn: int
    version: int
    at_ms: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            wanted: type = str if field.type == "str" else int
            if type(value) is not wanted:
                raise CodecError(f"a receipt's {field.name} is a {wanted.__name__}, not {value!r}")
        if self.units_dpn < 0 or self.flops < 0 or self.count < 0:
            raise CodecError("a receipt's work and units can't be negative")

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Receipt:
        return cls(**data)

    def to_bytes(self) -> bytes:
        """Canonical bytes: the codec with fields sorted by name. Equal receipts have equal bytes."""
        return encode(dict(sorted(self.to_dict().items())))

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Raises CodecError unless `data` are the canonical bytes of a receipt."""
        value = decode(data, max_bytes=MAX_BYTES)
        if type(value) is not dict or set(value) != {field.name for field in fields(cls)}:
            raise CodecError("not a receipt")
        receipt = cls(**value)
        if receipt.to_bytes() != data:
            raise CodecError("a receipt's bytes are not canonical")
        return receipt

    def leaf(self) -> bytes:
        """Its 32-byte leaf in the Merkle tree."""
        return leaf_hash(self.to_bytes())


def leaf_hash(body: bytes) -> bytes:
    """The leaf of a receipt's canonical bytes."""
    return sha256(LEAF + DOMAIN + body).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(NODE + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes; of no leaves: sha256 of nothing (RFC 6962)."""
    frontier = Frontier()
    for leaf in leaves:
        frontier = frontier.add(leaf)
    return frontier.root()


@dataclass(frozen=True)
class Frontier:
    """A growing tree's full subtrees from left to right: enough to add a leaf and read the root in O(log n).

    `peaks`: their hashes; `count`: leaves in all, whose binary digits say how large each subtree is.
    """

    count: int = 0
    peaks: tuple[bytes, ...] = ()

    def add(self, leaf: bytes) -> Frontier:
        peaks, node, size = list(self.peaks), leaf, self.count
        while size & 1:
            node = _node(peaks.pop(), node)
            size >>= 1
        return Frontier(self.count + 1, (*peaks, node))

    def root(self) -> bytes:
        if not self.peaks:
            return sha256(b"").digest()
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = _node(peak, node)
        return node

    def to_bytes(self) -> bytes:
        return self.count.to_bytes(8, "big") + b"".join(self.peaks)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """Raises CodecError unless the number of peaks fits the count."""
        count, rest = int.from_bytes(data[:8], "big"), data[8:]
        if len(data) < 8 or len(rest) != 32 * count.bit_count():
            raise CodecError("not a Merkle frontier")
        return cls(count, tuple(rest[i : i + 32] for i in range(0, len(rest), 32)))


def merkle_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of leaf `index`, from the leaf up (RFC 6962, section 2.1.1). Raises IndexError outside the tree."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"no leaf {index} among {len(leaves)}")
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*merkle_proof(leaves[:split], index), merkle_root(leaves[split:]))
    return (*merkle_proof(leaves[split:], index - split), merkle_root(leaves[:split]))


def merkle_verify(root: bytes, leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that `leaf` is leaf `index` of the `count` under `root`."""
    if not 0 <= index < count:
        return False
    lefts: list[bool] = []  # from the root down: is the leaf in the left half?
    while count > 1:
        split = _split(count)
        lefts.append(index < split)
        index, count = (index, split) if index < split else (index - split, count - split)
    if len(proof) != len(lefts):
        return False
    node = leaf
    for left, other in zip(reversed(lefts), proof, strict=True):
        node = _node(node, other) if left else _node(other, node)
    return node == root


def _split(count: int) -> int:
    """The largest power of two below `count` (2 or more)."""
    return 1 << ((count - 1).bit_length() - 1)
