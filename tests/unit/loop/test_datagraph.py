"""Names as data alone: what was encoded is there again, with its aliases; what doesn't fit is refused and runs nothing."""

import collections
import os
import types

import numpy as np
import pytest
import torch

from depin_nb.core.codec import decode, encode
from depin_nb.core.errors import CodecError
from depin_nb.loop.whole.datagraph import Decoder, Encoder, Unsendable


class Mine:
    pass


Mine.__module__ = "__main__"


def there_and_back(value, anchors=(), classes={"Mine": Mine}.get):
    numbers = {id(a): i for i, a in enumerate(anchors)}
    encoder = Encoder(lambda v: numbers.get(id(v)), lambda code: code is Mine)
    index = encoder.value(value)
    nodes = decode(encode(encoder.nodes))
    return Decoder(nodes, list(anchors), classes).value(index)


def test_kinds():
    mine = Mine()
    mine.me, mine.items = mine, [1, mine]
    held = [1]
    value = {
        "plain": [1, 2.5, "x", b"y", None, True, 1 + 2j, 2**80],
        (1, "t"): (frozenset({1}), {2, 3}),
        "more": [range(3), bytearray(b"z"), torch.Size([2, 3]), torch.float16],
        "count": collections.Counter("aab"),
        "groups": collections.defaultdict(list, {"a": [1]}),
        "ordered": collections.OrderedDict(b=1, a=2),
        "last": collections.deque([1, 2], maxlen=2),
        "array": np.arange(3),
        "mine": mine,
        "free": types.SimpleNamespace(a=1),
        "held": held,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    back = there_and_back(value, [held])
    assert list(back) == list(value)
    for name in ("plain", (1, "t"), "more", "count", "groups", "ordered", "last", "free"):
        assert back[name] == value[name]
        assert type(back[name]) is type(value[name])
    assert back["groups"]["new"] == []
    assert back["last"].maxlen == 2
    assert back["array"].tolist() == [0, 1, 2]
    assert back["mine"].me is back["mine"]
    assert back["mine"].items[1] is back["mine"]
    assert back["held"] is held
    assert isinstance(back["parameter"], torch.nn.Parameter)


def test_a_model_of_torchs_own_parts():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    back = there_and_back(model)
    x = torch.randn(4, 2)
    assert torch.equal(back(x), model(x))


@pytest.mark.parametrize("value", [(i for i in ()), lambda: 1, os, object(), [[open]], {"a": iter([])}, Mine, [Mine()]])
def test_what_no_data_can_be_made_of(value):
    encoder = Encoder(lambda v: None, lambda code: False)
    with pytest.raises(Unsendable):
        encoder.value(value)
    assert encoder.nodes == []


def test_a_class_that_is_not_here_is_missing_and_nothing_half_filled_is_left():
    missing = []
    decoder = Decoder([["list", [1, 2]], ["plain", 1], ["instance", "Other", []]], [], lambda name: None)
    assert decoder.known(lambda: decoder.value(0), "it", missing) is None
    assert missing == ["it (the notebook has no class 'Other')"]
    assert decoder._made == {}


def test_hostile_nodes():
    """What a worker might send instead: data that doesn't fit is refused, and nothing in the notebook has changed."""

    class Mine:
        pass

    Mine.__module__ = "__main__"
    notebooks = [[1, 2], {"a": 1}]
    classes = {"Mine": Mine, "os": os, "Error": ValueError, "eval": eval}.get
    for nodes in (
        [["anchor", 7]],
        [["anchor", -1]],
        [["code", "os"]],
        [["code", "eval"]],
        [["code", "system"]],
        [["instance", "Popen", []]],
        [["instance", "Error", []]],
        [["instance", "Mine", [["x", 9]]]],
        [["instance", "Mine", [[1, 0]]]],
        [["tuple", [0]]],
        [["set", [1]], ["list", []]],
        [["dict", [[1, 1]], "dict", ""], ["list", []]],
        [["dict", [], "defaultdict", "eval"]],
        [["dict", [], "object", ""]],
        [["tensor", 1, False, False]],
        [["tensor", torch.ones(1, dtype=torch.int64), True, True]],
        [["size", ["x"]]],
        [["range", [0, 1, 0]]],
        [["deque", [], -1]],
        [["nothing", 1]],
        [["list"]],
        ["list"],
        [["plain", {}]],
        [["list", [i + 1]] for i in range(500)] + [["plain", 1]],
    ):
        with pytest.raises(CodecError):
            Decoder(nodes, notebooks, classes).value(0)
    loop = Decoder([["list", [0, 1]], ["instance", "Mine", [["x", 0]]]], notebooks, classes).value(0)
    assert loop[0] is loop
    assert type(loop[1]) is Mine
    assert loop[1].x is loop
    assert isinstance(Decoder([["instance", "SimpleNamespace", []]], [], lambda n: None).value(0), types.SimpleNamespace)
