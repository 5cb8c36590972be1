"""The most memory that tensors take at once."""

import pytest
import torch

from depin_nb.core.memory import out_of_memory
from depin_nb.loop.peak import PeakMemory
from depin_nb.worker.runner import failure


def test_what_lives_at_once_is_counted():
    peak = PeakMemory()
    with peak:
        for _ in range(5):
            made = torch.ones(1000)
        first = made * 2
        view = first.view(10, 100)
        view += 1
    assert peak.peak_bytes == 2 * 4000, "the loop's tensors go one after the other, a view has no memory of its own"


def test_activations_gradients_and_the_optimizers_state_are_in_it():
    model = torch.nn.Linear(300, 300, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    x, weights = torch.randn(64, 300), 300 * 300 * 4
    peak = PeakMemory()
    with peak:
        model(x).sum().backward()
        optimizer.step()
    assert 3 * weights <= peak.peak_bytes <= 7 * weights, "the gradient, two moments, and what a step needs"


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_was_lacking(error: Exception, lacking: bool):
    assert out_of_memory(error) is lacking


def test_a_lease_without_memory_is_reported_by_that_type():
    from depin_nb.core.lease import Lease

    report = failure(Lease("l", "r", 1, 0, ()), MemoryError())
    assert report.extra["type"] == "OutOfMemory"
