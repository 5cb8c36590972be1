"""A worker's calls when another hub listens where its own did."""

from __future__ import annotations

import asyncio

import pytest

from depin_nb.core.errors import HubDied, HubError
from depin_nb.network.shaping import Link
from depin_nb.ports import SystemClock
from depin_nb.worker.gauge import Gauge
from depin_nb.worker.link import HubLink


class Answered(HubLink):
    """Gets that answer to whatever it asks."""

    def __init__(self, answer):
        self.worker, self._link, self._clock, self._gauge, self._rpc = "w", Link(0.0, 0.0, 0.0), SystemClock(), Gauge(), self
        self._answer = answer

    async def depin_lease(self, **request):
        return self._answer


UNKNOWN = {"leave": True, "hub": "second"}
REFUSED = {"error": {"type": "HubError", "message": "this worker hasn't joined", "hint": "", "fields": {"hub": "second"}}}


def test_what_another_hub_says_to_a_worker_that_it_does_not_know_means_that_the_hub_is_gone():
    for answer in (UNKNOWN, REFUSED):
        link = Answered(answer)
        link.life = "first"
        with pytest.raises(HubDied):
            asyncio.run(link.call("depin_lease"))


def test_the_hub_that_was_joined_is_obeyed():
    link = Answered(UNKNOWN)
    link.life = "second"
    assert asyncio.run(link.call("depin_lease")) == UNKNOWN
    link = Answered(REFUSED)
    link.life = "second"
    with pytest.raises(HubError, match="hasn't joined") as found:
        asyncio.run(link.call("depin_lease"))
    assert not isinstance(found.value, HubDied)
