"""Item 4: what a leased loop leaves is what the loop would have left here."""

import pytest
import torch
from catalogue import catalogue
from comparing import compare
from holding import exact
from inprocess import generators, local, seed
from running import Trained, function, merged_by_pass

CELLS = catalogue()
SETUP = CELLS["plain"].setup
EXACT = [
    "plain",
    "enumerate, running mean",
    "in a function",
    "tqdm",
    "range with get_batch",
    "several models and optimizers",
    "schedulers in and after the loop",
    "break on the running mean",
    "random in the body",
    "an open file, a lambda, time",
]


@pytest.mark.parametrize("name", [*EXACT, *(n for n in list(CELLS)[5::12] if n not in EXACT)])
def test_one_worker_is_bit_identical(session, name):
    """Some of each section; all of them run exact in tests/unit/loop/test_split.py, without a hub."""
    here = local(CELLS[name])
    theirs = Trained(session, CELLS[name], strategy="sync", workers=1)
    exact(here, theirs.ran, CELLS[name].ignored)
    assert theirs.statuses[-1].state == ("finished" if here[3] is None else "failed")
    assert all(pass_ == list(range(len(pass_))) for pass_ in merged_by_pass(theirs.run_id))


FIT = """
def fit():
    out = []
    for epoch in range(2):
        for x, y in loader:
            opt.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            opt.step()
            out.append(loss.item())
    return out
"""


def test_a_function_is_bit_identical_and_its_objects_stay_the_same(session):
    ours = local(SETUP, FIT)[0]
    seed()
    expected, after = ours["fit"](), generators()
    theirs = local(SETUP, "pass")[0]
    fit = function(FIT, theirs)
    model, optimizer, parameters = theirs["model"], theirs["opt"], [id(p) for p in theirs["model"].parameters()]
    seed()
    run = session.train(fit, strategy="sync", workers=1)
    assert run.result == expected
    assert generators() == after
    compare(ours, theirs)
    assert theirs["model"] is model
    assert [id(p) for p in model.parameters()] == parameters
    assert theirs["opt"] is optimizer
    # and both go on here, with the momentum that the run left
    seed(1)
    assert fit() == (seed(1), ours["fit"]())[1]
    compare(ours, theirs)


LARGE = """
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.set_default_dtype(torch.float64)
X = torch.randn({samples}, 8)
Y = (X.sum(1) > 0).long()
loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
alias = model
opt = {optimizer}
torch.set_default_dtype(torch.float32)
"""

LARGE_CELL = """
for epoch in range(2):
    running = 0.0
    for i, (x, y) in enumerate(loader):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        {clip}
        opt.step()
        running += loss.item()
        if i % 3 == 2:
            print(f"[{{epoch}}, {{i}}] {{running / 3:.5f}}")
            running = 0.0
    print("epoch", epoch, len(y))
"""

LARGE_STEPS = """
for epoch in range(2):
    batches = list(loader)
    for at in range(0, len(batches), 2):
        group = batches[at:at + 2]
        samples = sum(len(y) for _, y in group)
        opt.zero_grad()
        for x, y in group:
            (F.cross_entropy(model(x), y) * (len(y) / samples)).backward()
        {clip}
        opt.step()
"""
CLIP = "nn.utils.clip_grad_norm_(model.parameters(), 0.3)"


def shape(text):
    """The lines with their figures taken out."""
    return [line.split("]")[0] if line.startswith("[") else line for line in text.splitlines()]


@pytest.mark.parametrize(
    ("samples", "optimizer", "clip", "inner_steps"),
    [
        (60, "torch.optim.Adam(model.parameters(), lr=0.01)", "pass", None),  # 8 batches, the last of 4 samples
        (52, "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)", "pass", 2),  # 7 batches: the last group is short
        (52, "torch.optim.AdamW(model.parameters(), lr=0.01)", CLIP, 3),
    ],
)
def test_two_workers_make_the_large_batch_step(session, samples, optimizer, clip, inner_steps):
    setup = LARGE.format(samples=samples, optimizer=optimizer)
    by_hand = local(setup, LARGE_STEPS.format(clip=clip))[0]
    _, text, _, error = local(setup, LARGE_CELL.format(clip=clip))
    assert error is None
    theirs = Trained(session, setup, LARGE_CELL.format(clip=clip), strategy="sync", inner_steps=inner_steps).checked()
    for name, value in by_hand["model"].state_dict().items():
        got = theirs.namespace["model"].state_dict()[name]
        assert got.dtype == torch.float64
        assert torch.allclose(got, value, rtol=0, atol=1e-9), (name, (got - value).abs().max())
    assert shape(theirs.text) == shape(text)
    batches = -(-samples // 8)
    assert merged_by_pass(theirs.run_id) == [list(range(batches))] * 2
    assert {d.name for d in theirs.run.status.devices if d.iterations} == {"local-1", "local-2"}
    assert theirs.namespace["alias"] is theirs.namespace["model"]
