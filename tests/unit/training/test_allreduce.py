"""Gradients of a gang: bit-exact as bytes, their mean equal to the large batch's, and ranks that keep in step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.codec import encode
from depin_nb.core.errors import CodecError
from depin_nb.training.allreduce import Gang, OutOfStep, decode_grads, encode_grads, mean_gradients
from depin_nb.training.compress import same_bits

torch.set_num_threads(1)


def grads_of(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor | None]:
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_weighted_mean_is_the_large_batch() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 4)).double()
    x, y = torch.randn(21, 6, dtype=torch.float64), torch.randint(0, 4, (21,))
    parts = [(float(b - a), grads_of(model, x[a:b], y[a:b])) for a, b in ((0, 8), (8, 16), (16, 21))]
    sent = [(weight, decode_grads(encode_grads(g), max_bytes=1 << 20, like=parts[0][1])) for weight, g in parts]
    for mean, whole in zip(mean_gradients(sent), grads_of(model, x, y), strict=True):
        assert mean is not None
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, whole, rtol=1e-12, atol=1e-14)


def test_bytes_are_exact_and_sparse_becomes_dense() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([[2.0, 3.0]]), (3, 2), check_invariants=True)
    grads = [torch.tensor([float("nan"), -0.0, 1e-45]), None, torch.ones(2, dtype=torch.bfloat16), sparse]
    back = decode_grads(encode_grads(grads), max_bytes=10_000)
    assert back[1] is None
    assert all(same_bits(a, b) for a, b in ((back[0], grads[0]), (back[2], grads[2]), (back[3], sparse.to_dense())))


def test_a_missing_gradient_is_zeros() -> None:
    one, none = torch.tensor([4.0]), None
    assert mean_gradients([(1, [one, none, none]), (3, [none, one, none])]) == [torch.tensor([1.0]), torch.tensor([3.0]), None]
    assert one.item() == 4.0


def test_half_types_are_summed_in_float32() -> None:
    parts = [(1.0, [torch.tensor([1.0 + i / 128], dtype=torch.bfloat16)]) for i in range(64)]
    (mean,) = mean_gradients(parts)
    assert mean is not None
    assert mean.dtype == torch.bfloat16
    assert mean.item() == torch.tensor(1 + 31.5 / 128).to(torch.bfloat16).item()
    alone = torch.tensor([0.1, 3e-40])
    (same,) = mean_gradients([(7.0, [alone])])
    assert same is not None
    assert same_bits(same, alone)


@pytest.mark.parametrize(
    "parts",
    [
        [(1, [torch.ones(2)]), (1, [torch.ones(2), None])],
        [(1, [torch.ones(2)]), (1, [torch.ones(3)])],
        [(1, [None]), (1, [torch.ones(2)]), (1, [torch.ones(3)])],
        [(1, [torch.ones(2)]), (1, [torch.ones(2).double()])],
        [(1, [torch.ones(2, dtype=torch.int64)])],
        [(0, [torch.ones(2)])],
        [(-1, [torch.ones(2)]), (2, [torch.ones(2)])],
        [(float("nan"), [torch.ones(2)])],
        [(float("inf"), [torch.ones(2)])],
        [],
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: list) -> None:
    with pytest.raises(CodecError):
        mean_gradients(parts)


@pytest.mark.parametrize("value", [None, {}, [1.0], [[torch.ones(1)]], [torch.ones(3)], [torch.ones(2), None]])
def test_bytes_that_are_not_gradients_are_refused(value: object) -> None:
    with pytest.raises(CodecError):
        decode_grads(encode(value), max_bytes=10_000, like=[torch.ones(2)])


def test_a_gang_waits_for_each_rank_that_is_still_there() -> None:
    gang = Gang(3).arrive(2, 0).arrive(0, 0)
    assert not gang.ready(0)
    gang = gang.arrive(1, 0)
    assert gang.ready(0)
    assert gang.ranks(0) == (0, 1, 2)
    gang = gang.arrive(0, 1024).arrive(1, 1024)  # numbers may leave gaps: here each group of iterations has 1024
    assert not gang.ready(0)
    assert not gang.ready(1024)
    assert gang.ready(1024, size=2)  # a short last group that was planned
    assert gang.arrive(1, 1025, size=2).ranks(1025) == (1,)
    gang = gang.leave(2)
    assert gang.ready(1024)
    assert gang.ranks(1024) == (0, 1)


def test_a_rank_that_leaves_makes_a_step_ready_but_an_empty_one_never_is() -> None:
    gang = Gang(2)
    assert not gang.leave(0).leave(1).ready(0)
    assert not gang.ready(-1)
    assert gang.arrive(0, 5).leave(1).ready(5)


def test_ranks_out_of_step_are_told_so() -> None:
    gang = Gang(2).arrive(0, 3)
    for rank, step in ((0, 3), (0, 4), (1, 4), (1, 2), (1, -1), (2, 3), (-1, 3)):
        with pytest.raises(OutOfStep):
            gang.arrive(rank, step)
    with pytest.raises(OutOfStep):
        gang.leave(1).arrive(1, 3)
    with pytest.raises(OutOfStep):
        gang.arrive(1, 3).arrive(1, 3)
    aborted = gang.abort("rank 1 is gone").abort("later")
    assert aborted.aborted == "rank 1 is gone"
    with pytest.raises(OutOfStep):
        aborted.arrive(1, 3)
    assert not gang.arrive(1, 3).abort("").ready(3)


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), max_size=80))
def test_every_step_is_one_part_of_each_rank(size: int, calls: list[tuple[int, int]]) -> None:
    gang, parts = Gang(size), dict[int, list[int]]()
    for rank, step in calls:
        try:
            gang = gang.arrive(rank, step)
        except OutOfStep:
            continue
        parts.setdefault(step, []).append(rank)
    for step, ranks in parts.items():
        assert len(ranks) == len(set(ranks))
        assert step == gang.step or len(ranks) == size  # all that are over were whole
    assert list(parts) == sorted(parts)
    if parts:
        assert gang.ready(gang.step) == (len(parts[gang.step]) == size)
