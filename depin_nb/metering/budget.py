"""The budget of a run: an invariant. Spent and reserved together never exceed the cap, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from depin_nb.core.amount import USD, Amount
from depin_nb.core.errors import AmountError, BudgetExhausted

WARN_AT = Fraction(4, 5)
ZERO = Amount(0, USD)


@dataclass(frozen=True)
class Budget:
    """`cap`: the most that may be spent, None = open. `reserved`: worst-case cost of the leases that are out. All in one currency.

    Small leases cost less than a micro-dollar: a budget kept in DPN (`PriceBook.to_dpn(cap)`) loses nothing to rounding.
    """

    cap: Amount | None
    spent: Amount = ZERO
    reserved: Amount = ZERO
    run_id: str = ""

    def __post_init__(self) -> None:
        if self.spent.units < 0 or self.reserved.units < 0:
            raise AmountError("spent and reserved can't be negative")
        if self.cap is not None and self.committed > self.cap:
            raise AmountError(f"{self.committed} is more than the budget of {self.cap}")

    @classmethod
    def of(cls, cap: Amount | None, *, run_id: str = "") -> Budget:
        """A fresh budget in its cap's currency (USD when open)."""
        zero = Amount(0, cap.currency if cap is not None else USD)
        return cls(cap, zero, zero, run_id)

    @property
    def committed(self) -> Amount:
        return self.spent + self.reserved

    @property
    def left(self) -> Amount | None:
        """What may still be reserved; None when open."""
        return None if self.cap is None else self.cap - self.committed

    @property
    def warning(self) -> bool:
        """True once four fifths of the cap are spent."""
        return self.cap is not None and self.spent >= self.cap.times(WARN_AT)

    def allows(self, amount: Amount) -> bool:
        return self.cap is None or self.committed + _positive(amount) <= self.cap

    def reserve(self, amount: Amount) -> Budget:
        """With `amount` set aside. Raises BudgetExhausted when spent + reserved + amount would exceed the cap."""
        if not self.allows(amount):
            raise BudgetExhausted(
                f"the next lease ({amount}) would overspend the budget of {self.cap}: {self.spent} are spent, {self.reserved} reserved",
                run_id=self.run_id,
                spent=self.spent.to_dict(),
                budget=self.cap.to_dict() if self.cap is not None else None,
            )
        return replace(self, reserved=self.reserved + _positive(amount))

    def commit(self, reserved: Amount, actual: Amount) -> Budget:
        """A lease is done: its reservation ends and `actual` is spent. Raises AmountError if that is more than was reserved."""
        if _positive(actual) > reserved:
            raise AmountError(f"a lease can't cost {actual} when {reserved} were reserved for it")
        freed = self.release(reserved)
        return replace(freed, spent=freed.spent + actual)

    def release(self, reserved: Amount) -> Budget:
        """A lease came to nothing: its reservation ends. Raises AmountError if so much isn't reserved."""
        if _positive(reserved) > self.reserved:
            raise AmountError(f"{reserved} can't be released: {self.reserved} are reserved")
        return replace(self, reserved=self.reserved - reserved)

    def raise_to(self, cap: Amount | None) -> Budget:
        """With another cap. Raises AmountError when it is below what is spent and reserved already."""
        return replace(self, cap=cap)


def _positive(amount: Amount) -> Amount:
    if amount.units < 0:
        raise AmountError(f"{amount} is negative")
    return amount
