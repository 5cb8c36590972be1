"""A worker's log is data: what doesn't fit the notebook half is refused, and nothing in it names code to run."""

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depin_nb.core.codec import encode
from depin_nb.core.errors import RemoteError, ReplayError
from depin_nb.loop.halves.entries import RAISE, SINK, VALUE
from depin_nb.loop.halves.failures import rebuilt
from depin_nb.loop.halves.left import unpack_left
from depin_nb.loop.halves.replay import Replayer
from depin_nb.loop.source import Remote
from depin_nb.loop.split.callees import Callees


def replayer(log):
    half = Replayer(Callees(), {})
    half.begin(log)
    return half


BAD = [
    b"",
    b"noise",
    encode(1),
    encode([1]),
    encode([1, 2]),
    encode(["1", []]),
    encode([1, [[0, 1, 0]]]),
    encode([1, [["0", 1, 0, 1]]]),
    encode({"a": 1}),
]


@pytest.mark.parametrize("log", BAD)
def test_what_is_no_log(log):
    with pytest.raises(ReplayError):
        replayer(log)


@given(st.lists(st.lists(st.integers(-3, 9), min_size=4, max_size=4), max_size=4), st.integers(-1, 5))
def test_any_log_gives_values_or_a_replay_error(entries, turns):
    with suppress(ReplayError, RemoteError):
        half = replayer(encode([turns, entries]))
        half.method(1, Remote(), "item")
        half.binary(2, "add", Remote(), 1)
        half.finish()


def test_a_log_must_be_used_up():
    half = replayer(encode([2, [[0, 1, VALUE, 0.5]]]))
    assert half.method(1, Remote(), "item") == 0.5
    with pytest.raises(ReplayError):
        half.finish()
    half.attribute(2, Remote(), "grad")
    half.finish()


def test_values_for_a_sink_are_only_those_that_were_asked_for():
    half = replayer(encode([1, [[0, 1, SINK, {0: torch.ones(1), 1: torch.ones(1)}]]]))
    kept = []
    with pytest.raises(ReplayError):
        half.method(1, kept, "append", Remote())
    assert kept == []


def described(kind, message="m", **more):
    return {"type": kind, "message": message, "args": [message], "frames": [], **more}


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.exec",
        "exec",
        "print",
        "SystemExit",
        "KeyboardInterrupt",
        "torch.load",
        "torch.nn.Linear",
        "__main__.Trap",
        "depin_nb.core.errors.decode",
        "a..b",
    ],
)
def test_no_name_makes_anything_but_an_exception(name):
    class Trap:
        def __init__(self, *args):
            raise AssertionError("called")

    error = rebuilt(described(name), {"Trap": Trap})
    assert type(error) is RemoteError


def test_known_types_come_back():
    class Mine(Exception):
        pass

    assert type(rebuilt(described("ValueError"), {})) is ValueError
    assert type(rebuilt(described("__main__.Mine"), {"Mine": Mine})) is Mine
    assert type(rebuilt(described("torch.OutOfMemoryError"), {})) is torch.OutOfMemoryError
    assert type(rebuilt("nonsense", {})) is RemoteError
    half = replayer(encode([0, [[0, 1, RAISE, described("KeyError", "k")]]]))
    with pytest.raises(KeyError, match="k"):
        half.method(1, Remote(), "item")


@pytest.mark.parametrize(
    "wire",
    [
        ["own", "model", "parameter", "nowhere"],
        ["own", "other", "parameter", "weight"],
        ["own", "model", "function", "weight"],
        ["own", 3, "module", ""],
        ["own", "model", ["module"], ""],
        ["own", "model", "buffer", 0],
    ],
)
def test_a_name_for_a_part_that_is_not_there(wire):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ReplayError):
        unpack_left(encode({"p": wire}), {"model": model}, {}, max_bytes=1 << 20)
    assert unpack_left(encode({"p": ["own", "model", "parameter", "weight"]}), {"model": model}, {}, max_bytes=1 << 20)["p"] is model.weight
