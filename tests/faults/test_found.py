"""What histories have found."""

from __future__ import annotations

import pytest

from depin_nb.testing.histories import DevicePlan, Fault, History, NotebookPlan
from depin_nb.testing.playing import Player


@pytest.fixture(scope="module")
def player():
    with Player() as made:
        yield made


def test_a_run_waits_for_a_good_worker_that_left_a_moment_ago(player: Player):
    devices = (DevicePlan("w1", "phone", 1.0, 0.0, 0.0), DevicePlan("w2", "phone", 1.0, 0.0, 0.0))
    cell = NotebookPlan("n1", "local", 12, True, 1, 0.2, 1.0, None, "break", None, False, 100)
    refused = tuple(Fault("refuse", "w2", lease, "reports") for lease in (1, 2, 3))
    faults = (Fault("kill", "w1", 1, "leased", 5.0), *refused)
    played = player.play(History(0, devices, (cell,), faults, tuple(range(4)), "closed"))
    assert len(played.struck) == 4
    assert played.broken == ()
    assert played.outcomes == ("finished",)
