"""Between two loop entries the notebook may change anything: what it changed gets to the workers exactly, and only that is sent."""

import pytest
from comparing import compare
from inprocess import run_in_folder
from running import Trained

from depin_nb import wiring

SETUP = """
import torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(3)
net = nn.Sequential(nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 2))
X, Y = torch.randn(64, 200), torch.arange(64) % 2
opt = torch.optim.Adam(net.parameters(), lr=0.01)
kept = {k: v.clone() for k, v in net.state_dict().items()}
"""
CELL = """
for epoch in range(6):
    for i in range(0, 64, 16):
        opt.zero_grad()
        loss = F.cross_entropy(net(X[i:i + 16]), Y[i:i + 16])
        loss.backward()
        opt.step()
    BETWEEN
    print(epoch, loss.item())
"""
EDITS = """if epoch == 1:
        with torch.no_grad():
            net[2].bias[0] += 0.5
    elif epoch == 2:
        opt = torch.optim.Adam(net.parameters(), lr=0.005)
    elif epoch == 3:
        net.load_state_dict(kept)
        opt.load_state_dict(opt.state_dict())
    elif epoch == 4:
        scale = nn.Linear(2, 2)
        net.append(scale)
        opt.add_param_group({'params': list(scale.parameters()), 'lr': 0.1})"""
PARAMETERS = 200 * 200 + 200 + 2 * 200 + 2
STATE_BYTES = 3 * 4 * PARAMETERS  # with both moments of Adam


@pytest.fixture(scope="module")
def one(home):
    return wiring.connect("local", workers=1)


@pytest.mark.parametrize(("between", "most"), [("pass", 0.45), (EDITS, 1.9)])
def test_what_the_notebook_changes_between_entries_is_exact_and_alone_is_sent(one, between, most):
    """Without edits the model alone is sent, once (no moments then); with them one bias, nothing, the model again, and a small layer."""
    cell = CELL.replace("BETWEEN", between)
    ours, text, generators, error = run_in_folder(SETUP, lambda namespace: exec(cell, namespace))
    assert error is None
    trained = Trained(one, SETUP, cell, strategy="sync").checked()
    assert trained.text == text
    compare(ours, trained.namespace)
    assert trained.generators == generators
    assert trained.run.sent_bytes["states"] < most * STATE_BYTES


def test_changes_of_one_bit_train_and_optimizer_state_comes_back(home):
    three = wiring.connect("local", workers=3)
    try:
        cell = CELL.replace("BETWEEN", "pass")
        trained = Trained(three, SETUP, cell, strategy="local", bits=1, inner_steps=1).checked()
        losses = [float(line.split()[1]) for line in trained.text.splitlines()]
        assert len(losses) == 6
        assert losses[-1] < 0.5 * losses[0]
        state = trained.namespace["opt"].state[trained.namespace["net"][0].weight]
        assert bool((state["exp_avg_sq"] >= 0).all())
        assert bool(state["exp_avg"].any())
        assert state["step"] >= 6  # a worker's own over six entries, not the last entry's alone
    finally:
        wiring.connect("local", workers=1)
