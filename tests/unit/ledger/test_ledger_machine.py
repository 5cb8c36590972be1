"""LiteSVM must not disturb the thread that asks it."""

import numpy as np

from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.ledger.wallet import Wallets


def test_long_doubles_stay_right(tmp_path):
    wallets = Wallets(tmp_path / "wallets")
    chain = EmbeddedChain(tmp_path / "chain.sqlite", wallets)
    values = []
    for units in range(1, 6):
        chain.provide(wallets.user().address, units * 10**6)
        values.append(np.ldexp(np.longdouble(1), 100))
    chain.close()
    assert values == [np.longdouble(2.0**100)] * 5
