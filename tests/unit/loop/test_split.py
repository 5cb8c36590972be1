"""One worker, `sync`: the leased cell leaves bit for bit what the local one leaves."""

import pytest
import torch
from cells import CELLS, SETUP
from inprocess import leased, local
from torch.optim import Optimizer

from depin_nb.core.codec import encode
from depin_nb.loop.values import detached, is_value

IGNORED = {"start", "took", "log", "group", "__builtins__"}  # clocks, files, and a param group that is a copy


def compare(ours, theirs):
    """Names, plain values, tensors, modules and optimizers of two namespaces."""
    assert set(ours) == set(theirs)
    for name in set(ours) - IGNORED:
        a, b = ours[name], theirs[name]
        if isinstance(a, torch.nn.Module):
            assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)), name
        elif isinstance(a, Optimizer):
            states = [list(o.state[p].items()) for o in (a, b) for g in o.param_groups for p in g["params"]]
            half = len(states) // 2
            for x, y in zip(states[:half], states[half:], strict=True):
                assert encode(dict(sorted(x))) == encode(dict(sorted(y))), name
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), name
        elif is_value(a):
            assert repr(a) == repr(b), name
        elif isinstance(a, (list, dict)):
            assert encode(detached(a)) == encode(detached(b)), name
        elif type(a).__name__ in ("AverageMeter", "Trainer"):
            assert {k: v for k, v in vars(a).items() if is_value(v)} == {k: v for k, v in vars(b).items() if is_value(v)}, name


@pytest.mark.parametrize("name", CELLS)
def test_exact(name):
    ours, text, generators, error = local(SETUP, CELLS[name])
    assert error is None
    theirs, leased_text, leased_generators, leased_error, hub = leased(SETUP, CELLS[name])
    if leased_error is not None:
        raise leased_error
    assert leased_text == text
    compare(ours, theirs)
    assert leased_generators == generators
    assert theirs["alias"] is theirs["model"]
    assert hub.entries >= 1
    assert not [n for n in theirs if n.startswith("__depin")]
