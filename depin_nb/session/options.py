"""What a user may ask of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ..core import config
from ..core.amount import Amount

_OWN = ("budget", "name", "resume", "weight", "priority")  # of one run alone, or kept by the hub itself


@dataclass(frozen=True)
class TrainOptions:
    """`strategy`: auto, sync, local or sparse. `budget`: the most that the run may spend (None: the session's). `workers`: at most so many.

    `inner_steps`: steps between merges; `bits`: how changes travel (1, 4, 8, 32); `quorum`: share of a round with which a merge goes ahead;
    None: chosen.
    `data`: how datasets travel: auto, whole, samples (of each lease) or worker (built there from its own files).
    `send`: names that travel to workers although they look like secrets. `resume`: the run that is continued ("": the newest one of the
    same cell); what isn't given is as it was there. `weight`, `priority` (high, normal, low): its part in devices that several runs want.
    """

    strategy: str = "auto"
    budget: Amount | None = None
    name: str | None = None
    workers: int | None = None
    inner_steps: int | None = None
    bits: int | None = None
    resume: str | None = None
    send: tuple[str, ...] = ()
    data: str = "auto"
    quorum: float | None = None
    weight: float | None = None
    priority: str | None = None

    def share(self) -> dict[str, Any]:
        """Whose run it is, and what was given of its part in the devices: as `depin_run_start` takes it."""
        given = {"weight": self.weight, "priority": self.priority}
        return {"user": config.user(), **{name: value for name, value in given.items() if value is not None}}

    def asked(self) -> dict[str, Any]:
        """What was given of that which a resumed run keeps, as plain data."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OWN and getattr(self, f.name) != f.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if _plain(value)}

    def resumed(self, asked: dict[str, Any]) -> TrainOptions:
        """These options, with those of the run that is resumed (`asked()` of then) where none was given."""
        names = {f.name: f.default for f in fields(self) if f.name not in _OWN}
        kept: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in asked.items() if name in names}
        return replace(self, **{name: v for name, v in kept.items() if getattr(self, name) == names[name]})

    def tuning(self) -> dict[str, Any]:
        """The strategy's own options that were given."""
        given = {"inner_steps": self.inner_steps, "bits": self.bits, "quorum": self.quorum}
        return {name: value for name, value in given.items() if value is not None}


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) or (isinstance(value, tuple) and all(map(_plain, value)))
