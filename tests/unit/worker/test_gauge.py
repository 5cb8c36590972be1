import pytest

from depin_nb.worker.gauge import AGAIN_S, LONGEST_S, Gauge

LINK = {"up_mbit_s": 8.0, "down_mbit_s": 80.0, "latency_ms": 50.0}  # 1 MB/s up, 10 MB/s down
MB = 1_000_000


def gauge() -> Gauge:
    found = Gauge()
    found.measured(LINK, 0.0)
    return found


@pytest.mark.parametrize(("up", "down", "took_s"), [(MB, 0, 1.0), (MB, 0, 2.2), (MB, 10 * MB, 2.1), (MB, 0, 0.6), (1000, 1000, 9.0)])
def test_what_takes_about_as_long_as_it_should_is_no_doubt(up: int, down: int, took_s: float) -> None:
    found = gauge()
    for _ in range(5):
        found.passed(up, down, took_s)
    assert not found.doubted(AGAIN_S)


@pytest.mark.parametrize("took_s", [5.0, 0.2])
def test_two_in_a_row_far_off_the_same_way_are(took_s: float) -> None:
    found = gauge()
    found.passed(MB, 0, took_s)
    assert not found.doubted(AGAIN_S)
    found.passed(MB, 0, 1.0)
    found.passed(MB, 0, took_s)
    assert not found.doubted(AGAIN_S)
    found.passed(MB, 0, 5.2 - took_s)
    assert not found.doubted(AGAIN_S)
    found.passed(MB, 0, 5.2 - took_s)
    assert found.doubted(AGAIN_S)
    assert not found.doubted(AGAIN_S - 1)


def test_a_doubt_that_was_none_waits_longer_and_longer_and_a_change_soon_again() -> None:
    found, now_s, pauses = gauge(), AGAIN_S, []
    for _ in range(8):
        found.passed(MB, 0, 9.0)
        found.passed(MB, 0, 9.0)
        assert found.doubted(now_s)
        found.measured(LINK, now_s)
        found.passed(MB, 0, 9.0)
        found.passed(MB, 0, 9.0)
        pause_s = next(s for s in range(0, 10_000, 60) if found.doubted(now_s + s))
        pauses.append(pause_s)
        now_s += pause_s
    assert pauses[:3] == [2 * AGAIN_S, 4 * AGAIN_S, 8 * AGAIN_S]
    assert pauses[-1] == LONGEST_S
    found.measured({**LINK, "up_mbit_s": 1.0}, now_s)
    for _ in range(2):
        found.passed(MB, 0, 1.0)
    assert found.doubted(now_s + AGAIN_S)


def test_before_anything_was_measured_nothing_is_doubted() -> None:
    found = Gauge()
    for _ in range(3):
        found.passed(MB, 0, 100.0)
    assert not found.doubted(1e9)
