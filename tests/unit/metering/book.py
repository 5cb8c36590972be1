"""A price book with round figures of its own, so that the tests don't move with the catalog: 1 DPN = 1,000 micro-dollars."""

from dataclasses import replace

from depin_nb.core.amount import DPN, Amount
from depin_nb.metering.price import load

_UNITS = {"local": 0, "phone": 150_000, "laptop": 120_000, "single-board": 100_000}
BOOK = replace(
    load(),
    usd_micro_per_dpn=1000,
    devices={name: replace(price, per_tflop=Amount(_UNITS[name], DPN)) for name, price in load().devices.items()},
)
