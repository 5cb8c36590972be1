"""Backends decide names, profiles and commands; they start nothing themselves."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.backends.base import DeviceProfile, free_names, profile, profiles
from depin_nb.backends.local import LocalBackend
from depin_nb.backends.simulated import SimulatedBackend
from depin_nb.core.errors import ConfigError

BACKENDS = [LocalBackend(), SimulatedBackend()]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@given(count=st.integers(0, 12), keep=st.sets(st.integers(0, 11)))
def test_plan_fills_up_to_count_with_new_names(backend, count, keep):
    fleet = [spec.name for spec in backend.plan(12, [])]
    existing = [name for place, name in enumerate(fleet) if place in keep]
    added = backend.plan(count, existing)
    names = [spec.name for spec in added]
    assert len(names) == max(0, count - len(existing))
    assert len(set(names) | set(existing)) == len(names) + len(existing)
    assert all(spec.profile in profiles() for spec in added)


def test_fleet_cycles_through_the_profiles():
    assert [spec.profile for spec in SimulatedBackend().plan(5, [])] == ["phone", "laptop", "single-board", "phone", "phone"]


def test_a_device_that_is_gone_is_replaced_by_one_of_its_kind():
    fleet = [spec.name for spec in SimulatedBackend().plan(4, [])]
    lost = fleet.pop(2)
    (spec,) = SimulatedBackend().plan(4, fleet)
    assert (spec.name, spec.profile) == (lost, "single-board")


def test_whatever_is_simulated_says_so():
    for backend in BACKENDS:
        for spec in backend.plan(6, []):
            assert profile(spec.profile).simulated == backend.simulated
            assert ("simulated" in spec.name) == backend.simulated


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_command_is_this_python_with_the_allocator_settings(backend):
    (spec,) = backend.plan(1, [])
    argv, env = backend.command(spec, "tcp://127.0.0.1:1")
    assert argv[:3] == [sys.executable, "-m", "depin_nb.worker"]
    assert argv[3] == "tcp://127.0.0.1:1"
    assert argv[argv.index("--name") + 1] == spec.name
    assert argv[argv.index("--backend") + 1] == backend.name
    assert int(env["MALLOC_TRIM_THRESHOLD_"]) > 1 << 20
    assert env["OMP_NUM_THREADS"] == "1"


def test_free_names_are_the_lowest():
    assert free_names("local", 2, ["local-2"]) == ["local-1", "local-3"]


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match="toaster") as caught:
        profile("toaster")
    assert "phone" in caught.value.hint


@pytest.mark.parametrize("wrong", [{"speed": 0.0}, {"speed": -1.0}, {"up_mbit_s": -1.0}, {"latency_ms": -5.0}])
def test_impossible_profiles_are_refused(wrong):
    with pytest.raises(ConfigError):
        DeviceProfile("x", "phone", True, **wrong)
