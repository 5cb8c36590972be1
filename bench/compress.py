"""How small a change gets and how fast: 4-bit, 8-bit and float32 on one float32 tensor. Run: `python bench/compress.py [numel]`."""

from __future__ import annotations

import sys
import time

import torch

from depin_nb.core.state import State
from depin_nb.training.compress import decode_change, encode_change

REPEATS = 5


def main() -> None:
    numel = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    torch.manual_seed(0)
    base = State({"w": torch.randn(numel)}, {"w": "param"}, {})
    new = State({"w": base.tensors["w"] + 1e-3 * torch.randn(numel)}, {"w": "param"}, {})
    print(f"{numel:,} float32 values, {torch.get_num_threads()} threads, best of {REPEATS}; MB/s of float32")
    print(f"{'bits':>4} {'bytes':>10} {'ratio':>6} {'encode MB/s':>12} {'decode MB/s':>12}")
    for bits in (32, 8, 4):
        encode_s = decode_s = float("inf")
        for _ in range(REPEATS):
            start = time.perf_counter()
            data, _ = encode_change(base, new, bits=bits, include_inner=False)
            middle = time.perf_counter()
            decode_change(data, base, max_bytes=len(data))
            encode_s, decode_s = min(encode_s, middle - start), min(decode_s, time.perf_counter() - middle)
        size = 4 * numel
        print(f"{bits:>4} {len(data):>10,} {size / len(data):>6.2f} {size / encode_s / 1e6:>12.0f} {size / decode_s / 1e6:>12.0f}")


if __name__ == "__main__":
    main()
