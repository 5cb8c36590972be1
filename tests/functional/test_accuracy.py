"""Item 4: `local` on four simulated devices reaches what a local run of as many samples does.

The quickstart's model, data and learning rate, 20 epochs, with every setting chosen by depin-nb itself. Accuracy is the mean over the
last five epochs, for both, because one epoch's is a matter of single test images. On shorter runs local steps lag more
(docs/training.md): four devices take a quarter of the sequential steps that one process takes on as many samples.
"""

import pytest
import torch
from inprocess import local
from running import Trained

from depin_nb import wiring

SEEDS = range(5)
EPOCHS = 20
SETUP = """
import torch, torch.nn as nn, torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
digits = load_digits()
torch.manual_seed({seed})
order = torch.randperm(len(digits.target))
X = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
Y = torch.tensor(digits.target)[order]
train, X_test, Y_test = TensorDataset(X[:1437], Y[:1437]), X[1437:], Y[1437:]
loader = DataLoader(train, batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
opt = torch.optim.Adam(model.parameters(), lr=0.003)
"""
CELL = """
accuracies = []
for epoch in range(20):
    for x, y in loader:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
    with torch.no_grad():
        accuracies.append((model(X_test).argmax(1) == Y_test).double().mean().item())
accuracy = sum(accuracies[-5:]) / 5
"""


@pytest.fixture(scope="module")
def devices(home):
    return wiring.connect("depin", workers=4)


def test_four_simulated_devices_reach_the_accuracy_of_a_local_run(devices):
    here, there = [], []
    for seed in SEEDS:
        ours, _, _, error = local(SETUP.format(seed=seed), CELL)
        assert error is None
        theirs = Trained(devices, SETUP.format(seed=seed), CELL, strategy="local").checked()
        assert theirs.run.status.samples_done == EPOCHS * 1437
        assert sum(1 for d in theirs.run.status.devices if d.iterations) == 4
        assert all(d.simulated for d in theirs.run.status.devices)
        here.append(ours["accuracy"])
        there.append(theirs.namespace["accuracy"])
    means = [float(torch.tensor(values, dtype=torch.float64).mean()) for values in (here, there)]
    assert means[0] > 0.96
    assert means[1] >= means[0] - 0.01, (here, there)
