"""What a user may ask of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.amount import Amount


@dataclass(frozen=True)
class TrainOptions:
    """`strategy`: auto, sync or local. `budget`: the most that the run may spend (None: the session's). `workers`: at most so many.

    `inner_steps`: steps between merges; `bits`: how changes travel (4, 8, 32); None: chosen.
    """

    strategy: str = "auto"
    budget: Amount | None = None
    name: str | None = None
    workers: int | None = None
    inner_steps: int | None = None
    bits: int | None = None

    def tuning(self) -> dict[str, Any]:
        """The strategy's own options that were given."""
        return {k: v for k, v in (("inner_steps", self.inner_steps), ("bits", self.bits)) if v is not None}
