import pytest
import torch

from depin_nb.core.errors import CodecError
from depin_nb.training.inner import pack_inner
from depin_nb.training.packed import Rounded


def noise(seed: int, spread: float = 0.7) -> torch.Tensor:
    """Values over many orders of magnitude, as moments have."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(30, 70, generator=g) * torch.exp(spread * torch.randn(30, 70, generator=g))


def unpacked(payload):
    return Rounded.checked(payload).dense()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("power", "most"), [(1, 0.091), (2, 0.045)])
def test_each_value_is_off_by_a_share_of_itself(dtype: torch.dtype, power: int, most: float) -> None:
    value = noise(power).to(dtype)
    value = (value.sign() * value.abs().clamp(1e-3)) ** power
    packed = pack_inner(value)
    assert packed is not None
    assert packed[2] is (power == 1)
    assert sum(part.nbytes for part in packed[:2]) < 1.04 * value.numel()
    got = unpacked(packed)
    assert (got.dtype, got.shape) == (dtype, value.shape)
    torch.testing.assert_close(got, value, rtol=most, atol=0)


def test_what_is_positive_stays_positive_and_nothing_changes_its_sign() -> None:
    wide = noise(3, spread=30.0).nan_to_num(0.0, 1e30, -1e30).clamp(-1e30, 1e30)
    squares = wide.abs().clamp(1e-20, 1e18)
    for value in (wide, squares):
        packed = pack_inner(value)
        assert packed is not None
        got = unpacked(packed)
        assert bool((got * value >= 0).all())
        assert bool((got.abs() <= value.abs().max()).all())
    assert bool((got > 0).all())


def test_zeros_are_zeros() -> None:
    packed = pack_inner(torch.zeros(600))
    assert packed is not None
    assert not unpacked(packed).any()
    rows = torch.zeros(4, 300)
    rows[2] = 0.5
    packed = pack_inner(rows)
    assert packed is not None
    assert torch.equal(unpacked(packed), rows)


@pytest.mark.parametrize(
    "value", [torch.ones(256), torch.ones(600, dtype=torch.bfloat16), torch.full((600,), float("inf")), torch.full((600,), float("nan"))]
)
def test_what_is_small_or_not_finite_goes_another_way(value: torch.Tensor) -> None:
    assert pack_inner(value) is None


CODES, TOPS = torch.zeros(300, dtype=torch.uint8), torch.ones(2)
HOSTILE = [
    (),
    (CODES, TOPS),
    (CODES, TOPS, 1),
    (CODES.int(), TOPS, True),
    (CODES, TOPS[:1], True),
    (CODES, TOPS.view(1, 2), True),
    (CODES, TOPS.half(), True),
    (CODES, -TOPS, False),
    (CODES, TOPS / 0, False),
    (CODES, TOPS.log() / 0, False),
    [CODES, TOPS, True],
]


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_payloads_are_refused(payload: object) -> None:
    with pytest.raises(CodecError):
        unpacked(payload)
