"""Real kills of real processes, at chosen iterations of one run on a real hub: what is counted stays exact, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from depin_nb import wiring
from depin_nb.core import config
from depin_nb.ledger.embedded import EmbeddedChain
from depin_nb.session.session import newest_kept
from depin_nb.testing.promises import broken, merged_of_chain
from depin_nb.testing.storm import Storm, batches, plan

FAULTS = 54
pytestmark = pytest.mark.timeout(900)


def test_a_run_through_fifty_kills_stops_and_cuts(home: Path, tmp_path: Path):
    storm = Storm(home, tmp_path, seed=1, faults=FAULTS).run()
    assert sum(storm.come.values()) == FAULTS
    assert storm.come["hub"] == storm.hub_kills
    assert len(storm.runs) == 1
    assert storm.namespace["seen"] == list(range(batches(FAULTS)))
    kept = newest_kept(storm.runs[-1]).tensors
    assert all(torch.equal(kept[f"model/{name}"], value) for name, value in storm.namespace["model"].state_dict().items())
    assert merged_of_chain(home, storm.runs[-1]) == list(range(batches(FAULTS)))
    third = batches(FAULTS) // 3
    losses = storm.namespace["losses"]
    assert sum(losses[-third:]) < sum(losses[:third]), "the model learns all the while"
    wiring.down()
    chain = EmbeddedChain(config.chain_file())
    assert broken(home, chain, counted=False) == []
    chain.close()


def test_a_storm_is_its_seed():
    assert plan(1, 54, hub_kills=2) == plan(1, 54, hub_kills=2)
    kinds = list(plan(1, 54, hub_kills=2).values())
    assert kinds.count("hub") == 2
    assert kinds.count("kill") > kinds.count("cut") > 0
    assert "stop" in kinds
