"""Work of which nobody knows the FLOPs: a whole cell on one worker. It is reserved and charged by time, at the device's stated speed.

Unknown is not zero: the most that it may take is reserved beforehand (its limit in seconds), and what the hub's own clock saw is charged,
never more. What the receipt then holds as FLOPs is that time at the catalog's sustained speed.
"""

from __future__ import annotations

import math

from depin_nb.core.errors import ConfigError

from .price import FLOPS_PER_TFLOP, PriceBook


def flops_of_time(book: PriceBook, profile: str, seconds: float) -> int:
    """FLOPs that a device of this profile counts for so many seconds of its time, rounded up; 0 for one that is free.

    Raises ConfigError for a priced profile of which the catalog knows no sustained speed, and ValueError for a negative time.
    """
    if seconds < 0:
        raise ValueError("time can't be negative")
    price = book.price(profile)
    if not price.per_tflop:
        return 0
    if not price.sustained_tflops:
        raise ConfigError(f"the price catalog knows no speed of {profile!r}, so its time has no price", hint="Train without --single.")
    return math.ceil(price.sustained_tflops * FLOPS_PER_TFLOP * seconds)
