"""Which strategy suits a fleet: each of them somewhere, and never more bytes for a slower link."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depin_nb.training.choosing import Link, Load, suited

ORDER = ("sync", "local", "sparse")
PHONE = Link(2.5e6, 6.25e6, 0.04)
DIGITS = Load(9_610, 0.005, 15, 200)

links = st.builds(Link, st.floats(1e3, 1e10), st.floats(1e3, 1e10), st.floats(0, 2))
loads = st.builds(Load, st.integers(0, 10**10), st.floats(0, 100), st.integers(1, 50), st.none() | st.floats(0, 1e6))


@pytest.mark.parametrize(
    ("link", "load", "name", "said"),
    [
        (PHONE, replace(DIGITS, step_s=0.05), "local", "20 Mbit/s"),
        (Link(125e6, 125e6, 0.0005), Load(1_000_000, 1.0, 50, 100), "sync", "1,000 Mbit/s"),
        (PHONE, Load(10_000_000, 0.1, 50, 500), "sparse", "largest changes"),
        (PHONE, Load(10_000_000, 0.1, 50, 20), "local", "20 merges are too few"),
        (PHONE, Load(10_000_000, 0.1, 50, None), "local", "length isn't known"),
        (PHONE, replace(DIGITS, step_s=0.0015), "local", "sparse would still take"),
        (Link(625e3, 625e3, 0.08), Load(100_000, 1.0, 50, 500), "local", "5 Mbit/s"),
    ],
)
def test_each_has_its_place(link: Link, load: Load, name: str, said: str) -> None:
    chosen, why = suited(link, load)
    assert chosen == name
    assert said in why


@settings(deadline=None)
@given(link=links, load=loads, factor=st.floats(1, 1000))
def test_a_slower_link_or_a_larger_model_never_sends_more(link: Link, load: Load, factor: float) -> None:
    name, why = suited(link, load)
    assert name in ORDER
    assert why
    slower = Link(link.up_bytes_s / factor, link.down_bytes_s / factor, link.latency_s * factor)
    for harder, heavier in ((slower, load), (link, replace(load, values=int(load.values * factor)))):
        assert ORDER.index(suited(harder, heavier)[0]) >= ORDER.index(name)


@settings(deadline=None)
@given(link=links, load=loads, factor=st.floats(1, 1000))
def test_longer_steps_never_send_less(link: Link, load: Load, factor: float) -> None:
    longer = replace(load, step_s=load.step_s * factor)
    assert ORDER.index(suited(link, longer)[0]) <= ORDER.index(suited(link, load)[0])


@settings(deadline=None)
@given(link=links, load=loads)
def test_short_runs_are_never_sparse(link: Link, load: Load) -> None:
    for merges in (None, 0.0, 59.0):
        assert suited(link, replace(load, merges=merges))[0] != "sparse"
