"""Who sums up whose changes, and that sums count as the changes would one by one."""

from __future__ import annotations

import torch

from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import BUFFER, COUNTER, INNER, PARAM, STEP, State
from depin_nb.training.compress import decode_change, encode_change
from depin_nb.training.merge import Contribution, OuterState, merge
from depin_nb.training.tree import assigned, expected_bytes, read_sum, summed

NAMES = [f"w{i:02}" for i in range(40)]
MB = 1_000_000


def test_few_bytes_few_workers_or_nobody_trusted_go_to_the_hub():
    assert assigned(NAMES[:16], {"w00": 0.0}, 10 * MB) == {}
    assert assigned(NAMES[:17], {"w00": 0.0}, 10 * MB) == dict.fromkeys(NAMES[:17], "w00")
    assert assigned(NAMES, {}, 10 * MB) == {}
    assert assigned(NAMES, {"w00": 1.0}, 10 * MB, without=["w00"]) == {}
    assert assigned(NAMES[:1], {"w00": 1.0}, 1000 * MB) == {}


def test_the_fastest_take_consecutive_leases_of_about_the_same_number():
    given = assigned(NAMES, {"w03": 10.0, "w07": 100.0, "w09": 50.0, "w11": 0.0}, 10 * MB)
    assert list(given) == NAMES
    order = list(given.values())
    assert order == ["w07"] * 14 + ["w09"] * 13 + ["w03"] * 13
    assert assigned(NAMES, {"w03": 1.0}, 10 * MB, fan_in=4) == dict.fromkeys(NAMES, "w03")


def test_sums_that_are_larger_than_what_they_sum_up_are_not_made():
    trusted = {"w00": 1.0, "w01": 2.0, "w02": 3.0}
    assert assigned(NAMES, trusted, 10 * MB, sum_bytes=400 * MB) == {}
    assert set(assigned(NAMES, trusted, 10 * MB, sum_bytes=199 * MB).values()) == {"w01", "w02"}
    assert set(assigned(NAMES, trusted, 10 * MB, sum_bytes=201 * MB).values()) == {"w02"}
    assert set(assigned(NAMES, trusted, 10 * MB, tree_bytes=0, sum_bytes=400 * MB).values()) == {"w00", "w01", "w02"}


def base_state():
    torch.manual_seed(0)
    tensors = {
        "w": torch.randn(600),
        "untouched": torch.randn(10),
        "mean": torch.randn(3),
        "count": torch.tensor(5),
        "opt/step": torch.tensor(7.0),
    }
    kinds = {"w": PARAM, "untouched": PARAM, "mean": BUFFER, "count": COUNTER, "opt/step": STEP}
    return State(tensors, kinds, {"lr": 0.1})


def changed(base, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: t.clone() for name, t in base.tensors.items()}
    tensors["w"] += 0.01 * torch.randn(600, generator=generator)
    tensors["mean"] += torch.randn(3, generator=generator) if seed % 3 else 0.0
    tensors["count"] += seed
    tensors["opt/step"] += seed
    tensors["opt/avg"] = torch.randn(4, generator=generator)
    return State(tensors, {**base.kinds, "opt/avg": INNER}, {"lr": 0.1 / seed})


def test_sums_of_groups_count_as_their_changes_one_by_one():
    base = base_state()
    for bits, momentum in ((32, 0.0), (4, 0.3), (8, 0.0)):
        strategy = StrategyConfig(name="local", solo=False, bits=bits, outer_momentum=momentum)
        parts = []
        for number in range(1, 8):
            data, _ = encode_change(base, changed(base, number), bits=bits, include_inner=bits == 32)
            parts.append(Contribution(f"w{number}", 10 + number, 10 * number, decode_change(data, base, max_bytes=1 << 20)))
        outer = OuterState({"w": torch.ones(600)} if momentum else {})
        expected, expected_outer = merge(base, parts, strategy, outer)
        groups = [parts[:3], parts[3:5], parts[5:6]]
        sums = [
            Contribution(
                f"a{i}", sum(c.samples for c in group), group[-1].last_index,
                read_sum(summed(base, group, strategy), base, max_bytes=1 << 20),
            )
            for i, group in enumerate(groups)
        ]  # fmt: skip
        found, found_outer = merge(base, [*sums, parts[6]], strategy, outer)
        assert found.kinds == expected.kinds
        assert found.plain == expected.plain
        for name, tensor in expected.tensors.items():
            assert torch.allclose(found.tensors[name].double(), tensor.double(), rtol=0, atol=2e-6), name
        for name, tensor in expected_outer.momentum.items():
            assert torch.allclose(found_outer.momentum[name], tensor, atol=2e-6)


def test_a_change_is_estimated_by_its_parameters_and_bits():
    state = State({"w": torch.zeros(1000), "avg": torch.zeros(9000)}, {"w": PARAM, "avg": INNER})
    assert expected_bytes(state, StrategyConfig(bits=32)) == 4000
    assert expected_bytes(state, StrategyConfig(bits=4)) == 520
