"""What bench/bytes_loss.py compares: the front of bytes against loss, and what was tried beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """How a run is spread. `steps`: (share of the run until which it holds, local steps between merges), none for per-step sync; 0 steps,
    only at first: gradients are averaged at each step, both ways in `gradients` bits with error feedback, and go into all optimizers.

    `up`, `down`: bits. `outer_lr`: a number, (first, last) of a line over the run, or `norm`: what makes the mean change as long as the
    workers' own are, at most `norm_cap`; `last_lr`: that of the last merge. `momentum`: the outer one. `inner_lr`: times the user's.
    `inner`: `own` (each worker keeps its optimizer state), `mean` (averaged at merges, bf16 both ways) or `reset`. `average`: share of
    the run whose last versions' mean is the final model. `tail`: share of a lease whose last iterates' mean is handed in. `entry`: steps
    of a loop entry, 0 for one entry; `border`: between entries all workers begin on the optimizer state of the last of them, in `8 bits`
    (training/inner.py) or whole (`last`), on none (`reset`), or go on with their `own`.
    """

    name: str
    steps: tuple[tuple[float, int], ...] = ()
    up: int = 4
    down: int = 4
    outer_lr: float | str | tuple[float, float] = 1.0
    norm_cap: float = 2.0
    last_lr: float | None = None
    momentum: float = 0.0
    inner_lr: float = 1.0
    inner: str = "own"
    average: float = 0.0
    tail: float = 0.0
    entry: int = 0
    border: str = "own"
    gradients: int = 32


def every(steps: int) -> tuple[tuple[float, int], ...]:
    return ((1.0, steps),)


PER_STEP = Setting("per-step fp32")
FRONT = (
    Setting("H 10, momentum 0.3", every(10), momentum=0.3),
    Setting("H 30, plain mean", every(30)),
    Setting("H 30, momentum 0.3", every(30), momentum=0.3),
    Setting("H 30, momentum 0.3, rate 1.3, last 1", every(30), momentum=0.3, outer_lr=1.3, last_lr=1.0),
    Setting("H 15, after a quarter 45, momentum 0.3", ((0.25, 15), (1, 45)), momentum=0.3),
    Setting("H 60, momentum 0.3", every(60), momentum=0.3),
    Setting("1 bit, H 10, rate 1.25", every(10), 1, 1, outer_lr=1.25),
    Setting("1 bit, H 12, rate 1.25", every(12), 1, 1, outer_lr=1.25),
    Setting("1 bit, H 20, rate 1.25", every(20), 1, 1, outer_lr=1.25),
)
WIDE = (
    Setting("H 1, fp32", every(1), 32, 32),
    Setting("H 30, momentum 0.3, fp32", every(30), 32, 32, momentum=0.3),
    Setting("H 30, momentum 0.3, mean of the last 30 %", every(30), momentum=0.3, average=0.3),
    Setting("H 30, momentum 0.3, last rate 0.7", every(30), momentum=0.3, last_lr=0.7),
    Setting("H 30, rate on a line from 1.5 to 0.7", every(30), outer_lr=(1.5, 0.7)),
    Setting("H 5, after a tenth 45, momentum 0.3", ((0.1, 5), (1, 45)), momentum=0.3),
    Setting("H 30, momentum 0.3, inner state reset", every(30), momentum=0.3, inner="reset"),
    Setting("H 30, rate 1.5, last 1", every(30), outer_lr=1.5, last_lr=1.0),
    Setting("H 30, inner rate x 1.5", every(30), inner_lr=1.5),
    Setting("H 25, plain mean", every(25)),
    Setting("H 25, rate 0.7, momentum 0.3", every(25), outer_lr=0.7, momentum=0.3),
    Setting("H 25, mean of the iterates' last half, momentum 0.3", every(25), tail=0.5, momentum=0.3),
    Setting("H 25, workers' own norm, last 1", every(25), outer_lr="norm", last_lr=1.0),
    Setting("H 30, momentum 0.3, inner state averaged", every(30), momentum=0.3, inner="mean"),
    Setting("H 1, fp32, rate 2", every(1), 32, 32, outer_lr=2.0),
    Setting("H 2, fp32, rate 2", every(2), 32, 32, outer_lr=2.0),
    Setting("H 10, fp32, rate 1.5", every(10), 32, 32, outer_lr=1.5),
    Setting("gradients in 8 bits", every(0), gradients=8),
    Setting("gradients in 4 bits", every(0), gradients=4),
    Setting("gradients in 1 bit", every(0), gradients=1),
    Setting("gradients in 2 bits (the 64 largest)", every(0), gradients=2),
    Setting("gradients for a quarter, then H 30, momentum 0.3", ((0.25, 0), (1, 30)), momentum=0.3),
    Setting("gradients in 4 bits for 4 %, then 1 bit, H 12, rate 1.25", ((0.04, 0), (1, 12)), 1, 1, outer_lr=1.25, gradients=4),
    Setting("gradients in 4 bits for a tenth, then 1 bit, H 12, rate 1.25", ((0.1, 0), (1, 12)), 1, 1, outer_lr=1.25, gradients=4),
    Setting("gradients in 4 bits for a quarter, then 1 bit, H 12, rate 1.25", ((0.25, 0), (1, 12)), 1, 1, outer_lr=1.25, gradients=4),
    Setting("1 bit, H 10, plain mean", every(10), 1, 1),
    Setting("1 bit, H 10, inner rate x 1.3", every(10), 1, 1, inner_lr=1.3),
    Setting("1 bit, H 10, momentum 0.3", every(10), 1, 1, momentum=0.3),
    Setting("2 bits up, 4 down, H 1, rate 1.5", every(1), 2, 4, outer_lr=1.5),
    Setting("H 20, entries of 60 steps", every(20), momentum=0.3, entry=60),
    Setting("H 20, entries of 60 steps, one worker's state for all", every(20), momentum=0.3, entry=60, border="last"),
    Setting("H 20, entries of 60 steps, the same in 8 bits", every(20), momentum=0.3, entry=60, border="8 bits"),
    Setting("H 20, entries of 60 steps, no state", every(20), momentum=0.3, entry=60, border="reset"),
)
