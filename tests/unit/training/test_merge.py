"""Merging: averages where the docs say so, bit-exact where they promise it, and never a touch on what came in."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.core.codec import encode
from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import State
from depin_nb.training.compress import Change, decode_change, encode_change, same_bits
from depin_nb.training.merge import Accumulator, Contribution, OuterState, merge, rebased

torch.set_num_threads(1)
LOCAL = StrategyConfig("local", solo=False, bits=4)
GANG = StrategyConfig("sync", solo=False, bits=32)
SOLO = StrategyConfig("sync", solo=True, bits=32)


def one(kind: str, value: torch.Tensor) -> State:
    return State({"s": value}, {"s": kind}, {})


def sent(worker: str, samples: int, last: int, kind: str, value: torch.Tensor | None, *, delta: bool = False) -> Contribution:
    if value is None:
        return Contribution(worker, samples, last, Change())
    change = Change({} if delta else {"s": value}, {"s": value} if delta else {}, {"s": kind})
    return Contribution(worker, samples, last, change)


def merged(base: State, *contributions: Contribution, config: StrategyConfig = LOCAL) -> torch.Tensor:
    return merge(base, contributions, config, OuterState())[0].tensors["s"]


def test_parameters_take_the_sample_weighted_mean_change() -> None:
    base = one("param", torch.tensor([1.0, 2.0]))
    a, b = (
        sent("a", 30, 9, "param", torch.tensor([1.0, 0.0]), delta=True),
        sent("b", 10, 19, "param", torch.tensor([-1.0, 4.0]), delta=True),
    )
    assert merged(base, a, b).tolist() == [1.5, 3.0]
    assert merged(base, b, a).tolist() == [1.5, 3.0]
    # a contribution that left the slot alone changed it by zero
    assert merged(base, a, sent("b", 10, 19, "param", None)).tolist() == [1.75, 2.0]
    # raw values count by their difference from the base
    assert merged(base, a, sent("b", 10, 19, "param", torch.tensor([0.0, 6.0]))).tolist() == [1.5, 3.0]


def test_outer_step_follows_the_stated_convention() -> None:
    config = StrategyConfig("local", solo=False, outer_lr=0.5, outer_momentum=0.25)
    state, outer = one("param", torch.tensor([0.0])), OuterState()
    w = v = 0.0
    for change in (8.0, 4.0, None, 2.0):
        value = None if change is None else torch.tensor([change])
        state, outer = merge(state, [sent("a", 3, 0, "param", value, delta=True)], config, outer)
        v = 0.25 * v + (change or 0.0)
        w += 0.5 * v
        assert state.tensors["s"].item() == w
        assert outer.momentum["s"].item() == v
    assert merge(state, [], config, outer) == (state, outer)  # nobody reported: no step


def test_momentum_zero_and_rate_one_are_the_mean_of_models() -> None:
    g = torch.Generator().manual_seed(0)
    base = one("param", torch.randn(50, generator=g))
    models = [torch.randn(50, generator=g) for _ in range(4)]
    got = merged(base, *(sent(str(i), 7, i, "param", m) for i, m in enumerate(models)))
    torch.testing.assert_close(got, torch.stack(models).mean(0), rtol=1e-5, atol=1e-6)


def test_buffers_average_values_and_the_base_stands_in() -> None:
    base = one("buffer", torch.tensor([8.0, float("-inf")]))
    a, b = torch.tensor([0.0, float("-inf")]), torch.tensor([4.0, float("-inf")])
    assert merged(base, sent("a", 1, 0, "buffer", a), sent("b", 3, 1, "buffer", b)).tolist() == [3.0, float("-inf")]
    assert merged(base, sent("a", 1, 0, "buffer", a), sent("b", 3, 1, "buffer", None)).tolist() == [6.0, float("-inf")]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_counters_add_up(dtype: torch.dtype) -> None:
    base = one("counter", torch.tensor(200, dtype=dtype))
    new = [torch.tensor(n, dtype=dtype) for n in (210, 203)]
    got = merged(base, sent("a", 99, 0, "counter", new[0]), sent("b", 1, 1, "counter", new[1]), sent("c", 1, 2, "counter", None))
    assert (got.item(), got.dtype) == (213, dtype)


def test_optimizer_state_averages_over_those_that_sent_it() -> None:
    base = one("inner", torch.tensor([100.0]))
    got = merged(
        base, sent("a", 1, 0, "inner", torch.tensor([1.0])), sent("b", 3, 1, "inner", torch.tensor([5.0])), sent("c", 4, 2, "inner", None)
    )
    assert got.item() == 4.0
    new = merged(State(), sent("a", 1, 0, "inner", torch.ones(2).half()), sent("b", 1, 1, "inner", torch.zeros(2).half()))
    assert (new.tolist(), new.dtype) == ([0.5, 0.5], torch.float16)


def test_a_new_slot_in_another_shape_is_left_out() -> None:
    got = merged(State(), sent("a", 1, 0, "inner", torch.ones(2)), sent("b", 1, 1, "inner", torch.zeros(3)))
    assert got.tolist() == [1.0, 1.0]
    assert merged(State(), sent("a", 1, 0, "step", torch.ones(2)), sent("b", 1, 1, "step", torch.zeros(3))).tolist() == [1.0, 1.0]


def test_a_new_slot_of_another_dtype_is_left_out() -> None:
    got = merged(State(), sent("a", 1, 0, "inner", torch.ones(2)), sent("b", 1, 1, "inner", torch.ones(2, dtype=torch.complex64)))
    assert (got.tolist(), got.dtype) == ([1.0, 1.0], torch.float32)


def test_steps_take_the_maximum() -> None:
    base = one("step", torch.tensor(5.0))
    got = merged(
        base, sent("a", 1, 0, "step", torch.tensor(12.0)), sent("b", 1, 1, "step", torch.tensor(9.0)), sent("c", 1, 2, "step", None)
    )
    assert got.item() == 12.0


def test_plain_values_come_from_the_last_in_loop_order() -> None:
    base = State(plain={"lr": 1.0})
    changes = [
        Contribution(w, 1, last, Change(plain=plain))
        for w, last, plain in (("a", 30, None), ("b", 20, {"lr": 0.2}), ("c", 10, {"lr": 0.1}))
    ]
    assert merge(base, changes, LOCAL, OuterState())[0].plain == {"lr": 0.2}
    assert merge(base, changes[:1] * 2, LOCAL, OuterState())[0].plain == {"lr": 1.0}


def test_carried_tensors_and_generators_stay_with_several_workers() -> None:
    for kind in ("carried", "rng"):
        base = one(kind, torch.tensor([1]))
        assert merged(base, *(sent(w, 1, 0, kind, torch.tensor([2])) for w in "ab"), config=GANG).item() == 1
        assert merged(base, sent("a", 1, 0, kind, torch.tensor([2])), config=SOLO).item() == 2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.sampled_from([SOLO, GANG, LOCAL]), st.integers(1, 1000))
def test_a_single_contribution_of_raw_values_is_taken_bit_for_bit(values: list[float], config: StrategyConfig, samples: int) -> None:
    base = one("param", torch.full((len(values),), 0.1))
    new = one("param", torch.tensor(values))
    data, _ = encode_change(base, new, bits=32, include_inner=True)
    contribution = Contribution("a", samples, 3, decode_change(data, base, max_bytes=1 << 20))
    state, outer = merge(base, [contribution], config, OuterState())
    assert same_bits(state.tensors["s"], new.tensors["s"])
    assert outer == OuterState()


def test_a_single_quantised_contribution_is_added() -> None:
    base = one("param", torch.tensor([1.0]))
    assert merged(base, sent("a", 5, 0, "param", torch.tensor([0.5]), delta=True)).item() == 1.5


def test_a_gang_has_the_values_of_its_last_replica_and_everybodys_buffers() -> None:
    base = State(
        {"w": torch.tensor([1.0]), "m": torch.tensor([0.0]), "n": torch.tensor(0), "e": torch.tensor([0.0])},
        {"w": "param", "m": "buffer", "n": "counter", "e": "inner"},
        {},
    )

    def replica(rank: int, last: int, w: float, n: int) -> Contribution:
        values = {"w": torch.tensor([w]), "m": torch.tensor([float(rank)]), "n": torch.tensor(n), "e": torch.tensor([w / 3])}
        return Contribution(f"r{rank}", 10, last, Change(values, {}, dict(base.kinds)))

    # three ranks, the last group without rank 2, which therefore misses a step
    state, _ = merge(base, [replica(2, 5, 0.7, 2), replica(0, 6, 0.1 + 0.2, 3), replica(1, 7, 0.1 + 0.2, 3)], GANG, OuterState())
    assert same_bits(state.tensors["w"], torch.tensor([0.1 + 0.2]))
    assert same_bits(state.tensors["e"], torch.tensor([(0.1 + 0.2) / 3]))
    assert state.tensors["n"].item() == 8
    torch.testing.assert_close(state.tensors["m"], torch.tensor([1.0]))
    idle = Contribution("r9", 10, 9, Change())
    assert merge(base, [replica(0, 6, 0.3, 1), idle], GANG, OuterState())[0].tensors["w"].item() == 1.0


def test_a_solo_run_merges_one_lease_at_a_time() -> None:
    base = one("param", torch.zeros(1))
    with pytest.raises(ValueError, match="one by one"):
        merged(base, *(sent(w, 1, 0, "param", torch.ones(1)) for w in "ab"), config=SOLO)


def test_precision_of_each_dtype() -> None:
    wide = one("param", torch.tensor([1.0], dtype=torch.float64))
    a, b = (torch.tensor([1.0 + d], dtype=torch.float64) for d in (1e-12, 3e-12))
    assert merged(wide, sent("a", 1, 0, "param", a), sent("b", 1, 1, "param", b)).item() == pytest.approx(1 + 2e-12, abs=1e-15)
    half = one("param", torch.tensor([1.0], dtype=torch.bfloat16))
    many = [sent(str(i), 1, i, "param", torch.tensor([0.0078125 * 1.01]), delta=True) for i in range(9)]
    got = merged(half, *many)
    assert (got.item(), got.dtype) == (1.0078125, torch.bfloat16)
    complex_ = one("param", torch.tensor([1 + 1j]))
    got = merged(complex_, *(sent(w, 1, 0, "param", torch.tensor([v])) for w, v in (("a", 3 + 1j), ("b", 1 + 3j))))
    assert got.item() == 2 + 2j
    flags = one("buffer", torch.tensor([True, False]))
    assert merged(flags, *(sent(w, 1, i, "buffer", torch.tensor([False, i == 1])) for i, w in enumerate("ab"))).tolist() == [False, True]


def random_round(seed: int) -> tuple[State, list[Contribution]]:
    g = torch.Generator().manual_seed(seed)
    base = State(
        {"w": torch.randn(700, generator=g), "b": torch.randn(3, generator=g), "m": torch.randn(4, generator=g), "n": torch.tensor(5)},
        {"w": "param", "b": "param", "m": "buffer", "n": "counter"},
        {"lr": 1},
    )
    contributions = []
    for i in range(5):
        new = State({n: t + (torch.randn(t.shape, generator=g) if t.dim() else i) for n, t in base.tensors.items()}, base.kinds, {"lr": i})
        new.tensors["adam"], new.kinds = torch.rand(3, generator=g), {**base.kinds, "adam": "inner"}
        data, _ = encode_change(base, new, bits=[4, 8, 32][seed % 3], include_inner=i % 2 == 0)
        contributions.append(Contribution(f"w{i}", 10 + i, 10 * i, decode_change(data, base, max_bytes=1 << 20)))
    return base, contributions


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 100), config=st.sampled_from([LOCAL, GANG, StrategyConfig("local", solo=False, outer_momentum=0.3)]))
def test_merging_is_pure_and_order_free(seed: int, config: StrategyConfig) -> None:
    base, contributions = random_round(seed)
    outer = OuterState({"w": torch.ones(700)})

    def everything() -> bytes:
        parts = [[c.change.values, c.change.deltas, c.change.kinds, c.change.plain] for c in contributions]
        return encode([base.tensors, base.kinds, base.plain, outer.momentum, parts])

    before = everything()
    state, after = merge(base, contributions, config, outer)
    shuffled = random.Random(seed).sample(contributions, len(contributions))
    again, after_again = merge(base, shuffled, config, outer)
    assert everything() == before
    assert set(state.tensors) == set(state.kinds) == {*base.tensors, "adam"}
    assert all(same_bits(t, again.tensors[n]) for n, t in state.tensors.items())
    assert all(same_bits(t, after_again.momentum[n]) for n, t in after.momentum.items())
    assert (again.plain, again.kinds) == (state.plain, state.kinds)
    assert State.from_bytes(state.to_bytes()).plain == {"lr": 4}


def test_the_accumulator_wants_loop_order_and_everybody() -> None:
    a, b = (sent(w, 2, last, "param", torch.ones(1), delta=True) for w, last in (("a", 4), ("b", 9)))
    sums = Accumulator(one("param", torch.zeros(1)), LOCAL, total=4)
    sums.add(b)
    with pytest.raises(ValueError, match="loop order"):
        sums.add(a)
    with pytest.raises(ValueError, match="announced"):
        sums.finish(OuterState())


def test_local_steps_by_four_workers_learn() -> None:
    """The whole path: train, encode in 4 bits with feedback, decode, merge; the loss falls as far as with whole values."""

    def run(bits: int) -> float:
        torch.manual_seed(0)
        x = torch.randn(400, 20)
        y = x @ torch.randn(20, 20)
        state, outer = State({"w": torch.zeros(20, 20)}, {"w": "param"}, {}), OuterState()
        left: list[dict[str, torch.Tensor]] = [{} for _ in range(4)]
        for _ in range(20):
            contributions = []
            for worker in range(4):
                w = state.tensors["w"].clone().requires_grad_()
                for _ in range(5):
                    (grad,) = torch.autograd.grad(((x[worker::4] @ w - y[worker::4]) ** 2).mean(), w)
                    w = (w - 1.5 * grad).detach().requires_grad_()
                data, left[worker] = encode_change(
                    state, State({"w": w.detach()}, state.kinds, {}), bits=bits, residual=left[worker], include_inner=False
                )
                contributions.append(Contribution(str(worker), 100, worker, decode_change(data, state, max_bytes=1 << 20)))
            state, outer = merge(state, contributions, LOCAL, outer)
        return ((x @ state.tensors["w"] - y) ** 2).mean().item() / (y**2).mean().item()

    assert run(32) < 1e-3
    assert run(4) < 2e-3


def late(value: torch.Tensor, kind: str, then: torch.Tensor, now: torch.Tensor, *, delta: bool = False) -> Change:
    change = Change({} if delta else {"s": value}, {"s": value} if delta else {}, {"s": kind}, {"lr": 1})
    return rebased(change, one(kind, then), one(kind, now))


def test_a_late_change_counts_by_its_difference_and_with_less_weight() -> None:
    then, now = torch.tensor([1.0]), torch.tensor([10.0])
    base = one("param", now)
    for change in (late(torch.tensor([3.0]), "param", then, now), late(torch.tensor([2.0]), "param", then, now, delta=True)):
        assert change.plain is None
        for staleness, moved in ((0, 2.0), (3, 1.0)):
            alone = merge(base, [Contribution("a", 4, 0, change, staleness)], LOCAL)[0].tensors["s"]
            assert alone.item() == pytest.approx(10.0 + moved)
        fresh = sent("b", 12, 1, "param", torch.tensor([4.0]), delta=True)
        both = merge(base, [Contribution("a", 4, 0, change, 3), fresh], LOCAL)[0].tensors["s"]
        assert both.item() == pytest.approx(10.0 + (4 * 0.5 * 2 + 12 * 4) / 16)


def test_late_counters_add_up_and_late_buffers_leave_room_to_the_base() -> None:
    change = late(torch.tensor(7), "counter", torch.tensor(5), torch.tensor(20))
    assert merge(one("counter", torch.tensor(20)), [Contribution("a", 4, 0, change, 8)], LOCAL)[0].tensors["s"].item() == 22
    buffer = late(torch.tensor([4.0]), "buffer", torch.tensor([0.0]), torch.tensor([8.0]))
    mean = merge(one("buffer", torch.tensor([8.0])), [Contribution("a", 4, 0, buffer, 3)], LOCAL)[0].tensors["s"]
    assert mean.item() == pytest.approx(6.0)
    assert "s" not in late(torch.tensor([4]), "buffer", torch.tensor([0]), torch.tensor([8])).values, "the newest whole value stays"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_late_changes_never_move_further_than_in_time(staleness: list[int], data: st.DataObject) -> None:
    steps = [data.draw(st.floats(-10, 10, width=32)) for _ in staleness]
    base = one("param", torch.zeros(1))
    pairs = list(zip(steps, staleness, strict=True))
    changes = [Contribution(str(i), 3, i, Change({}, {"s": torch.tensor([v])}, {"s": "param"}), tau) for i, (v, tau) in enumerate(pairs)]
    moved = merge(base, changes, LOCAL)[0].tensors["s"].item()
    assert moved == pytest.approx(sum(v / (1 + tau) ** 0.5 for v, tau in pairs) / len(steps), abs=1e-4)
