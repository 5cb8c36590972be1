"""How data reaches a real worker: drawn in step where the random generators ask for it, once by content, by samples, or by its own path."""

import pytest
from catalogue import catalogue
from comparing import compare
from inprocess import local
from running import Trained

from depin_nb import wiring
from depin_nb.core.errors import DatasetDiffers

CELLS = catalogue()
STEPPED = ["a generator that draws each batch", "an own sampler that draws as it goes", "random augmentation in processes"]


@pytest.fixture(scope="module")
def one(home):
    return wiring.connect("local", workers=1)


@pytest.mark.parametrize("name", STEPPED)
def test_what_is_drawn_in_step_is_exact(one, name):
    ours, text, generators, error = local(CELLS[name])
    assert error is None
    trained = Trained(one, CELLS[name], strategy="sync").checked()
    assert trained.text == text
    compare(ours, trained.namespace)
    assert trained.generators == generators


SETUP = """
import os
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
X, Y = torch.randn(512, 256), torch.arange(512) % 2
data = TensorDataset(X, Y)
net = nn.Linear(256, 2)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
class Here(Dataset):
    def __init__(self, root):
        self.root, self.pid = root, os.getpid()
    def __len__(self):
        return 12
    def __getitem__(self, i):
        return torch.full((256,), float(self.pid % 1000 + 1)), torch.tensor(i % 2)
"""
CELL = """
for epoch in range(2):
    for x, y in DataLoader(DATA, batch_size=64, shuffle=True):
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        print(loss.item())
"""
DATA_BYTES = 512 * 256 * 4


def test_a_dataset_is_sent_once_or_its_samples_each_time(one):
    cell = CELL.replace("DATA", "data")
    text = local(SETUP, cell)[1]
    first, again, samples = (Trained(one, SETUP, cell, strategy="sync", data=way).checked() for way in ("auto", "auto", "samples"))
    assert first.text == again.text == samples.text == text
    assert first.run.sent_bytes["data"] > DATA_BYTES  # both passes, one time
    assert first.run.sent_bytes["data"] < 1.5 * DATA_BYTES
    assert again.run.sent_bytes["data"] == 0
    assert again.run.sent_bytes["units"] < 0.1 * DATA_BYTES
    assert samples.run.sent_bytes["units"] > 2 * DATA_BYTES


def test_a_worker_with_another_dataset_at_that_path_trains_nothing(one):
    trained = Trained(one, SETUP, CELL.replace("DATA", "Here('/data/here')"), strategy="sync", data="worker")
    assert isinstance(trained.error, DatasetDiffers), trained.error
    assert "Here(root='/data/here') has another first sample" in str(trained.error)
    assert "-> Put the same files" in str(trained.error)
    assert trained.text == ""
