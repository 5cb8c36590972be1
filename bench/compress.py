"""How small changes and new versions get and how fast, one float32 tensor at a time. Run: `python bench/compress.py [numel]`.

Each round takes every case once, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from depin_nb.core.state import State
from depin_nb.training.compress import decode_change, encode_change
from depin_nb.training.downlink import apply_step, digest_of, encode_step

ROUNDS = 5
MAX_BYTES = 1 << 33


def cases(base: State, new: State) -> dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]]:
    """What is measured: name -> (encode, decode)."""
    found: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
        f"change, {bits} bits": (
            lambda bits=bits: encode_change(base, new, bits=bits, include_inner=False)[0],
            lambda data: decode_change(data, base, max_bytes=MAX_BYTES),
        )
        for bits in (32, 8, 4, 2, 1)
    }
    found["version, whole"] = (new.to_bytes, lambda data: State.from_bytes(data))
    for bits in (8, 4, 1):
        found[f"version, {bits}-bit step"] = (
            lambda bits=bits: encode_step(base, new, bits=bits)[0],
            lambda data: apply_step(base, data, max_bytes=MAX_BYTES),
        )
    found["digest"] = (lambda: digest_of(new), lambda data: None)
    return found


def main() -> None:
    numel = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    torch.manual_seed(0)
    base = State({"w": torch.randn(numel)}, {"w": "param"}, {})
    new = State({"w": base.tensors["w"] + 1e-3 * torch.randn(numel)}, {"w": "param"}, {})
    measured = cases(base, new)
    best = {name: [0, float("inf"), float("inf")] for name in measured}
    for _ in range(ROUNDS):
        for name, (encode, decode) in measured.items():
            start = time.perf_counter()
            data = encode()
            middle = time.perf_counter()
            decode(data)
            end = time.perf_counter()
            best[name] = [len(data), min(best[name][1], middle - start), min(best[name][2], end - middle)]
    print(f"{numel:,} float32 values, {torch.get_num_threads()} threads, best of {ROUNDS}; MB/s of float32")
    print(f"{'':<20} {'bytes':>10} {'ratio':>7} {'encode MB/s':>12} {'decode MB/s':>12}")
    size = 4 * numel
    for name, (length, encode_s, decode_s) in best.items():
        print(f"{name:<20} {length:>10,.0f} {size / length:>7.2f} {size / encode_s / 1e6:>12,.0f} {size / decode_s / 1e6:>12,.0f}")


if __name__ == "__main__":
    main()
