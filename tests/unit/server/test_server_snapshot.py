"""The pure checks between hub, Jupyter server and browser."""

from __future__ import annotations

import pytest

from depin_nb.server.snapshot import Control, HubAddress, address_from, browser_view, control_from

GOOD = {"status_url": "http://127.0.0.1:4711/", "status_token": "s3cret"}


def test_address_is_read_from_hub_json():
    address = address_from({**GOOD, "pid": 1})
    assert address == HubAddress("http://127.0.0.1:4711", "s3cret")
    assert address.ws_url == "ws://127.0.0.1:4711"
    assert address.headers == {"Authorization": "Bearer s3cret"}


def test_the_token_is_in_no_repr():
    assert "s3cret" not in repr(address_from(GOOD))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {**GOOD, "status_url": "file:///etc/passwd"},
        {**GOOD, "status_url": "http://"},
        {**GOOD, "status_url": 7},
        {**GOOD, "status_token": None},
        {**GOOD, "status_token": "a\r\nX-Injected: 1"},
    ],
)
def test_an_unusable_hub_json_is_no_hub(data):
    assert address_from(data) is None


def test_the_browser_never_gets_the_token():
    seen = browser_view({"hub": {"id": "h", "status_token": "s3cret", "token": "s3cret"}, "runs": [], "workers": [], "more": 1})
    assert seen == {"hub": {"id": "h"}, "runs": [], "workers": []}


@pytest.mark.parametrize("data", [None, [], {}, {"hub": {}, "runs": {}, "workers": []}, {"hub": None, "runs": [], "workers": []}])
def test_another_shape_is_refused(data):
    with pytest.raises(ValueError, match="not a hub's status"):
        browser_view(data)


def test_controls_are_checked():
    assert control_from({"run": "run-1", "action": "stop", "value": "ignored"}) == Control("run-1", "stop")
    assert control_from({"run": "run-1", "action": "budget", "value": "$0.20"}).to_dict() == {
        "run": "run-1",
        "action": "budget",
        "value": "$0.20",
    }


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "JSON object"),
        ({"action": "stop"}, "run"),
        ({"run": "", "action": "stop"}, "run"),
        ({"run": "r" * 201, "action": "stop"}, "run"),
        ({"run": "r", "action": "shutdown"}, "pause, resume, stop, budget"),
        ({"run": "r", "action": ["stop"]}, "pause, resume, stop, budget"),
        ({"run": "r", "action": "budget"}, "new budget"),
        ({"run": "r", "action": "budget", "value": 3}, "new budget"),
    ],
)
def test_a_malformed_control_is_refused_with_a_reason(data, says):
    with pytest.raises(ValueError, match=says):
        control_from(data)
