"""A tensor that leaves the loop looks as it would have, without its graph."""

import pytest
import torch
from torch.nn import functional as F

from depin_nb.loop.halves.graphs import graph_names, revived
from depin_nb.loop.values import detached


def test_it_prints_and_behaves_as_the_original():
    weight = torch.randn(3, 2, requires_grad=True)
    out = torch.ones(4, 3) @ weight
    values = {"loss": F.cross_entropy(out, torch.zeros(4).long()), "parts": [out.relu(), weight, torch.ones(2)], "n": 3}
    names = graph_names(values)
    left = revived(detached(values), names)
    assert repr(left) == repr(values)
    assert left["parts"][0].requires_grad
    assert not left["parts"][0].is_leaf
    assert left["parts"][1].is_leaf
    assert not left["parts"][2].requires_grad
    assert left["loss"].item() == values["loss"].item()
    with pytest.raises(RuntimeError, match=r"requires grad"):
        left["loss"].numpy()
    with pytest.raises(RuntimeError, match="a second time"):
        left["loss"].backward()


@pytest.mark.parametrize("names", [None, [], ["a", "b"], [3], ["x" * 100], ["a b"], ["__import__('os')"], {"a": 1}])
def test_hostile_names_change_nothing_that_matters(names):
    left = revived(torch.ones(2), names)
    assert torch.equal(left.detach(), torch.ones(2))
    assert left.grad_fn is None


def test_integers_have_no_graph():
    assert not revived(torch.arange(3), ["AddBackward0"]).requires_grad
