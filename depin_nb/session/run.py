"""A run as a user holds it: going on, finished, or read from the journal by `attach`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core import config
from ..core.errors import CheckpointError
from ..core.state import BUFFER, COUNTER, PARAM, State
from ..core.status import Status
from ..hub.versions.checkpoint_files import Checkpoint, CheckpointFiles
from ..hub.versions.checkpoint_files import best as lowest

if TYPE_CHECKING:
    import torch


@dataclass
class Run:
    """`status` is the last one known; `load_state` reads the newest merged version.

    `sent_bytes`: what this kernel sent the hub for it: `program` (code and names, where they changed), `data` (each content once),
    `units` (indices or samples) and `states` (what each loop entry begins with and the hub didn't have).
    """

    run_id: str
    status: Status
    load_state: Callable[[], State]
    losses: tuple[tuple[float, float], ...] = ()
    result: Any = None  # what the trained function returned
    sent_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return self.status.state

    def metrics(self) -> dict[str, list[float]]:
        """The loss curve: `iteration` and `loss`, over all entries of the loop."""
        points = self.losses or self.status.loss
        return {"iteration": [x for x, _ in points], "loss": [y for _, y in points]}

    def checkpoints(self) -> list[Checkpoint]:
        """The run's checkpoints that are on disk, by version (docs/runs.md)."""
        return CheckpointFiles(config.home() / "runs").all(self.run_id)

    def checkpoint(self, *, best: bool = False) -> Checkpoint:
        """The newest checkpoint, or the one of the lowest loss. Raises CheckpointError when there is none."""
        found = self.checkpoints()
        chosen = lowest(found) if best else found[-1] if found else None
        if chosen is None:
            raise CheckpointError(
                f"{self.run_id} has no checkpoint{' with a loss' if found else ''}",
                hint="One is written each minute and at the end of a run that merged something; `run.state_dict()` has its newest weights.",
                path=str(config.home() / "runs"),
            )
        return chosen

    def state_dict(self, model: str | None = None) -> dict[str, torch.Tensor]:
        """Weights and buffers of the newest merge, as `model.load_state_dict` takes them. `model`: the name it had in the notebook
        (not needed when there was one). Raises KeyError with the names that there are.
        """
        tensors = self.load_state()
        names: dict[str, dict[str, torch.Tensor]] = {}
        for slot, tensor in tensors.tensors.items():
            label, _, key = slot.partition("/")
            if tensors.kinds[slot] in (PARAM, BUFFER, COUNTER) and key:
                names.setdefault(label, {})[key] = tensor
        if model is None and len(names) == 1:
            return next(iter(names.values()))
        if model not in names:
            raise KeyError(f"{self.run_id} holds the weights of {', '.join(sorted(names)) or 'no model'}; name one of them")
        return names[model]

    def summary(self) -> str:
        """One paragraph: state, work, devices, money, signatures."""
        s = self.status
        loss = f", last loss {s.loss[-1][1]:.4g}" if s.loss else ""
        workers = ", ".join(f"{d.name} {d.iterations} it." for d in s.devices if d.iterations)
        lines = [
            f"{s.run_id} {s.name}: {s.state} after {s.elapsed_s:.1f} s, {s.iterations_done} iterations, {s.samples_done} samples{loss}",
            f"workers: {workers or 'none'}",
            f"spent {s.spent}, accrued {s.tokens_accrued.text()} metered, paid {s.tokens_paid.text()} settled",
        ]
        if s.signatures:
            lines.append("signatures: " + ", ".join(s.signatures))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()
