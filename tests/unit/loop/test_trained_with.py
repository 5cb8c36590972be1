"""Sparse gradients in a gang, and models that are compiled again where they run."""

import pytest
import torch
from inprocess import leased, local

from depin_nb.core.codec import decode
from depin_nb.core.lease import EntrySpec, Lease, StrategyConfig, Unit
from depin_nb.core.state import CARRIED, State
from depin_nb.loop.halves.record import WorkerHalf
from depin_nb.loop.ship import compiled
from depin_nb.loop.ship.compiled import can_compile, compiled_with, reduced, uncompiled
from depin_nb.loop.ship.objects import Roots
from depin_nb.loop.source import Source, pack
from depin_nb.training.allreduce import decode_grads, encode_grads, mean_gradients

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it imports its compiler

SPARSE = """
import torch, torch.nn as nn, torch.nn.functional as F
bag = nn.EmbeddingBag(6, 3, mode="sum", sparse=True)
head = nn.Linear(3, 2)
sparse_opt = torch.optim.SparseAdam(list(bag.parameters()), lr=0.1)
dense_opt = torch.optim.SGD(head.parameters(), lr=0.1)
words = [torch.tensor([[0, 1]]), torch.tensor([[1, 4]])]
"""
LOOP = """
for i in range(2):
    sparse_opt.zero_grad()
    dense_opt.zero_grad()
    F.cross_entropy(head(bag(words[i])), torch.tensor([1])).backward()
    sparse_opt.step()
    dense_opt.step()
"""


class Gang:
    """One rank's hub: the other rank's gradients are those that the same iteration gave with other words."""

    def __init__(self, others):
        self.others, self.seen = others, []

    def __call__(self, step, samples, grads):
        self.seen.append([None if g is None else g.is_sparse for g in grads])
        mine = decode_grads(encode_grads(grads), max_bytes=1 << 20, like=grads)
        return mean_gradients([(1.0, mine), (1.0, self.others)])


def test_a_gang_gives_sparse_gradients_back_to_those_who_take_nothing_else(monkeypatch):
    shipments = []
    from depin_nb.loop import opening

    ship = opening.ship
    monkeypatch.setattr(opening, "ship", lambda **given: shipments.append(ship(**{**given, "solo": False})) or shipments[-1])
    assert leased(SPARSE, LOOP)[3] is None
    made = shipments[0]
    worker = WorkerHalf(made.program, made.blobs.__getitem__)
    worker.load(State.from_bytes(made.roots.read({}, rng=False).to_bytes()))
    table = worker.env["bag"].weight
    others = [torch.zeros_like(t) for t in worker.roots.trainable()]
    others[next(i for i, t in enumerate(worker.roots.trainable()) if t is table)][5] = 2.0
    gang = Gang(others)
    before = table.detach().clone()
    lease = Lease(
        "l", "r", 0, 0, (Unit(0, pack(Source(range(2)).peek()[0]), 1),), gang="g", groups=(0,), group_samples=(2,), group_size=(2,)
    )
    outcome = worker.run(lease, EntrySpec("", (), StrategyConfig("sync", solo=False), 1, 0, 0, 0.0, 0), reduce=gang)
    assert outcome.exit == "", decode(outcome.logs[-1])
    assert any(True in seen for seen in gang.seen)
    assert table.grad.is_sparse
    changed = (table.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [0, 1, 5]  # this rank's words and the other's, nobody else's


def test_sparse_gradients_that_are_kept_travel_as_they_are():
    net = torch.nn.Embedding(5, 2, sparse=True)
    net(torch.tensor([1, 3, 3])).sum().backward()
    state = State.from_bytes(Roots(modules={"net": net}, grads=True).read({}, rng=True).to_bytes())
    assert {slot: kind for slot, kind in state.kinds.items() if ".grad" in slot} == {
        "net/weight.grad.indices": CARRIED,
        "net/weight.grad.values": CARRIED,
    }
    other = torch.nn.Embedding(5, 2, sparse=True)
    Roots(modules={"net": other}).write(state, {}, rng=False)
    assert other.weight.grad.is_sparse
    assert torch.equal(other.weight.grad.to_dense(), net.weight.grad.to_dense())


def test_a_malformed_sparse_gradient_is_refused():
    from depin_nb.core.errors import ReplayError

    net = torch.nn.Embedding(5, 2, sparse=True)
    state = Roots(modules={"net": net}).read({}, rng=False)
    for slot, tensor in (("indices", torch.tensor([[77]])), ("values", torch.zeros(1, 2))):
        state.tensors[f"net/weight.grad.{slot}"], state.kinds[f"net/weight.grad.{slot}"] = tensor, CARRIED
    with pytest.raises(ReplayError, match="gradient"):
        Roots(modules={"net": net}).write(state, {}, rng=False)


# --- compiled again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"backend": "eager", "fullgraph": True}, {"backend": "aot_eager", "dynamic": False}, {}])
def test_a_compiled_model_is_made_again_with_the_same_options(options):
    model = torch.nn.Linear(2, 2)
    fast = torch.compile(model, **options)
    make, (original, found) = reduced(fast)
    assert original is model
    assert found["backend"] == options.get("backend", "inductor") == compiled_with(fast)
    assert found["fullgraph"] == options.get("fullgraph", False)
    assert found["dynamic"] == options.get("dynamic")
    with uncompiled():
        again = make(original, found)
    assert type(again) is type(fast)
    assert [name for name, _ in again.named_parameters()] == ["_orig_mod.weight", "_orig_mod.bias"]
    assert torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_without_a_compiler_it_runs_uncompiled(monkeypatch):
    monkeypatch.setattr(compiled, "can_compile", lambda: False)
    make, parts = reduced(torch.compile(torch.nn.Linear(2, 2)))
    assert type(make(*parts).dynamo_ctx).__name__ == "DisableContext"
    make, parts = reduced(torch.compile(_double))
    assert make(*parts) is _double
    make, parts = reduced(torch.compile(_double, backend="eager"))
    assert compiled_with(make(*parts)) == "eager"


def _double(x):
    return x * 2


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler here")
def test_inductor_gives_what_it_gives_here():
    setup = """
import torch, torch.nn as nn
X, Y = torch.randn(16, 4), torch.randn(16, 1)
net = nn.Linear(4, 1)
fast = torch.compile(net)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
"""
    cell = """
for i in range(3):
    loss = (fast(X) - Y).pow(2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
"""
    ours, theirs = local(setup, cell), leased(setup, cell)
    assert theirs[3] is None
    assert theirs[1] == ours[1]
    assert torch.equal(ours[0]["net"].weight, theirs[0]["net"].weight)
