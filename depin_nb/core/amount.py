"""Money is an integer number of base units with its currency. Floats exist only in `Amount.text()`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum
from fractions import Fraction

from .errors import AmountError


@dataclass(frozen=True)
class Currency:
    """A currency or SPL mint: its code, the decimals between base unit and display unit, and a sign before or after."""

    code: str
    decimals: int
    sign: str = ""
    mint: str = ""  # base58 address of the SPL mint, when it is a token


USD = Currency("USD", 6, "$")  # base unit: micro-dollar
DPN = Currency("DPN", 6)  # the token of the embedded chain; simulated value
CURRENCIES = {"USD": USD, "DPN": DPN, "$": USD}


@dataclass(frozen=True, order=False)
class Amount:
    """`units` base units of `currency`. Adding different currencies raises AmountError."""

    units: int
    currency: Currency = USD

    def __post_init__(self) -> None:
        if isinstance(self.units, bool) or not isinstance(self.units, int):
            raise AmountError(f"an amount has integer base units, not {self.units!r}")

    def _same(self, other: Amount) -> None:
        if self.currency.code != other.currency.code:
            raise AmountError(f"{self.currency.code} and {other.currency.code} can't be mixed")

    def __add__(self, other: Amount) -> Amount:
        self._same(other)
        return Amount(self.units + other.units, self.currency)

    def __sub__(self, other: Amount) -> Amount:
        self._same(other)
        return Amount(self.units - other.units, self.currency)

    def __lt__(self, other: Amount) -> bool:
        self._same(other)
        return self.units < other.units

    def __le__(self, other: Amount) -> bool:
        self._same(other)
        return self.units <= other.units

    def __gt__(self, other: Amount) -> bool:
        return not self <= other

    def __ge__(self, other: Amount) -> bool:
        return not self < other

    def __bool__(self) -> bool:
        return self.units != 0

    def times(self, factor: int | Fraction) -> Amount:
        """This amount times an exact factor, rounded up to a whole base unit (a payer never promises too little)."""
        exact = Fraction(self.units) * factor
        return Amount(-((-exact.numerator) // exact.denominator), self.currency)

    def text(self, digits: int | None = None) -> str:
        """For people: `$0.0312` or `12.5 DPN`. Small dollar amounts keep two significant digits."""
        value = Decimal(self.units) / (Decimal(10) ** self.currency.decimals)
        if digits is None:
            digits = 2
            while digits < self.currency.decimals and value != 0 and abs(value) < Decimal(10) ** (1 - digits):
                digits += 1
        shown = f"{value:,.{digits}f}"
        return f"{self.currency.sign}{shown}" if self.currency.sign else f"{shown} {self.currency.code}"

    __str__ = text

    def to_dict(self) -> dict[str, object]:
        return {"units": self.units, "currency": self.currency.code}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Amount:
        units, code = data.get("units"), data.get("currency")
        if not isinstance(units, int) or code not in CURRENCIES:
            raise AmountError(f"not an amount: {data!r}")
        return cls(units, CURRENCIES[str(code)])


_TEXT = re.compile(r"^\s*(\$)?\s*([0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]{3})?\s*$")


def parse(text: str, default: Currency = USD) -> Amount:
    """`$0.10`, `0.10`, `0.1 USD` or `25 DPN` as an Amount. Raises AmountError on anything else, also on too many decimals."""
    match = _TEXT.match(text)
    if not match:
        raise AmountError(f"{text!r} is not an amount")
    sign, number, code = match.groups()
    if sign and code and code.upper() != "USD":
        raise AmountError(f"{text!r} names two currencies")
    currency = USD if sign else CURRENCIES.get(code.upper()) if code else default
    if currency is None:
        raise AmountError(f"{code!r} is not a currency known here", hint=f"Known: {', '.join(c for c in CURRENCIES if c.isalpha())}.")
    try:
        units = Decimal(number.replace(",", "").replace("_", "")) * (Decimal(10) ** currency.decimals)
    except InvalidOperation:
        raise AmountError(f"{text!r} is not an amount") from None
    if units != units.to_integral_value():
        raise AmountError(f"{text!r} has more than {currency.decimals} decimals")
    return Amount(int(units), currency)


class Tag(str, Enum):
    """Where a shown figure comes from. Every shown figure has one."""

    QUOTED = "quoted"
    ESTIMATED = "estimated"
    METERED = "metered"
    SETTLED = "settled"


@dataclass(frozen=True)
class Figure:
    """An amount with its origin."""

    amount: Amount
    tag: Tag

    def __str__(self) -> str:
        return f"{self.amount.text()} {self.tag.value}"

    def to_dict(self) -> dict[str, object]:
        return {**self.amount.to_dict(), "tag": self.tag.value}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Figure:
        return cls(Amount.from_dict(data), Tag(data["tag"]))
