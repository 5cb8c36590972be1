import pytest
import torch

from depin_nb.core.state import BUFFER, INNER, PARAM, STEP, State
from depin_nb.training.compress import same_bits
from depin_nb.training.entering import composed, same_inner, slot_digests, without


def newest() -> State:
    tensors = {
        "model/w": torch.linspace(-1, 1, 600),
        "model/half": torch.linspace(-1, 1, 300).to(torch.bfloat16),
        "model/zero": torch.zeros(3),
        "model/nan": torch.tensor([float("nan"), 1.0]),
        "model/empty": torch.zeros(0, 3),
        "opt/0/exp_avg": torch.ones(600),
        "opt/0/step": torch.tensor(4.0),
    }
    kinds = dict.fromkeys(tensors, PARAM) | {"model/zero": BUFFER, "opt/0/exp_avg": INNER, "opt/0/step": STEP}
    return State(tensors, kinds, {"opt/groups": [{"lr": 0.1}]})


def copy(state: State) -> State:
    return State({n: t.clone() for n, t in state.tensors.items()}, dict(state.kinds), dict(state.plain))


def assert_equal(a: State, b: State) -> None:
    assert a.kinds == b.kinds
    assert a.plain == b.plain
    assert all(same_bits(a.tensors[n], b.tensors[n]) for n in a.tensors)


def in_place(state: State) -> None:
    state.tensors["model/w"][17] += 1


def sign_of_zero(state: State) -> None:
    state.tensors["model/zero"].neg_()


def other_dtype(state: State) -> None:
    state.tensors["model/w"] = state.tensors["model/w"].double()


def other_shape(state: State) -> None:
    state.tensors["model/w"] = state.tensors["model/w"].view(20, 30)


def fresh_optimizer(state: State) -> None:
    for name in ("opt/0/exp_avg", "opt/0/step"):
        del state.tensors[name], state.kinds[name]


def frozen(state: State) -> None:
    state.kinds["model/w"] = BUFFER


def new_parameter(state: State) -> None:
    state.tensors["model/more"], state.kinds["model/more"] = torch.ones(2), PARAM


def only_the_rate(state: State) -> None:
    state.plain["opt/groups"] = [{"lr": 0.05}]


@pytest.mark.parametrize(
    ("edit", "sent"),
    [
        (lambda state: None, []),
        (in_place, ["model/w"]),
        (sign_of_zero, ["model/zero"]),
        (other_dtype, ["model/w"]),
        (other_shape, ["model/w"]),
        (fresh_optimizer, []),
        (frozen, ["model/w"]),
        (new_parameter, ["model/more"]),
        (only_the_rate, []),
    ],
)
def test_only_what_changed_is_sent_and_the_whole_is_exact(edit, sent):
    base = newest()
    state = copy(base)
    edit(state)
    part, same = without(state, slot_digests(base))
    assert sorted(part.tensors) == sent
    found = composed(base, State.from_bytes(part.to_bytes()), same)
    assert found is not None
    assert_equal(found, state)


def test_a_hub_that_has_other_slots_asks_for_the_whole():
    state = newest()
    part, same = without(state, slot_digests(state))
    other = copy(state)
    other.tensors["model/w"][0] = 5
    assert composed(other, part, same) is None
    del other.tensors["model/w"]
    assert composed(other, part, same) is None
    assert composed(None, part, same) is None


def test_the_first_time_everything_is_sent():
    part, same = without(newest(), {})
    assert not same
    assert part.tensors.keys() == newest().tensors.keys()
    assert composed(None, part, same) is part


def test_optimizer_state_is_untouched_whatever_weights_and_rates_do():
    state = newest()
    for edit in (in_place, only_the_rate):
        edit(state)
    assert same_inner(newest(), state)
    state.tensors["opt/0/exp_avg"][0] = 2
    assert not same_inner(newest(), state)
    fresh = newest()
    fresh_optimizer(fresh)
    assert not same_inner(newest(), fresh)
