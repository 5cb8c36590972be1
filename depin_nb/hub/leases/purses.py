"""What the runs of one user may spend together on this hub: an invariant, as each run's own budget is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depin_nb.core.amount import DPN, Amount
from depin_nb.core.errors import BudgetExhausted
from depin_nb.hub.run import Run
from depin_nb.metering.budget import Budget

if TYPE_CHECKING:
    from depin_nb.hub.coordinator import Coordinator


class Purses:
    """`cap`: the most that a user's active runs may have spent and reserved together, as it was given; None = no limit."""

    def __init__(self, hub: Coordinator, cap: Amount | None) -> None:
        self._hub, self.cap = hub, cap
        self._cap_dpn = None if cap is None else hub.prices.to_dpn(cap)

    def committed(self, user: str) -> Amount:
        """Spent and reserved of the user's active runs, in DPN."""
        return Amount(sum(r.budget.committed.units for r in self._hub.runs.values() if r.claim.user == user), DPN)

    def allows(self, run: Run, amount: Amount) -> bool:
        """Whether both the run's own budget and its user's have room for so much."""
        return run.budget.allows(amount) and self._has_room(run, amount)

    def reserve(self, run: Run, amount: Amount) -> Budget:
        """The run's budget with `amount` set aside. Raises BudgetExhausted for the one or the other."""
        if not self._has_room(run, amount):
            raise self.exhausted(run)
        return run.budget.reserve(amount)

    def binds(self, run: Run) -> bool:
        """Whether the user's budget has less room than the run's own: then it is the one that a lease exceeds."""
        if self._cap_dpn is None:
            return False
        left = run.budget.left
        return left is None or self._cap_dpn - self.committed(run.claim.user) < left

    def exhausted(self, run: Run) -> BudgetExhausted:
        """What a run is told that its user's budget stops."""
        spent = self._hub.prices.to_usd(self.committed(run.claim.user))
        return BudgetExhausted(
            f"the next lease would overspend the budget of {run.claim.user or 'this user'} on this hub: {self.cap} for all runs together,"
            f" {spent} are spent or reserved",
            hint="The model holds the last merge. Go on with --resume when another run has ended, or ask whoever runs the hub"
            " for more (`depin hub --user-budget`).",
            run_id=run.run_id,
            spent=spent.to_dict(),
            budget=None if self.cap is None else self.cap.to_dict(),
            user=run.claim.user,
        )

    def _has_room(self, run: Run, amount: Amount) -> bool:
        return self._cap_dpn is None or self.committed(run.claim.user) + amount <= self._cap_dpn
