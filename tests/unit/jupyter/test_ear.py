"""Clicks are heard once, in order, checked, and while a real kernel's cell blocks."""

from __future__ import annotations

from threading import Event

import pytest

from depin_nb.jupyter.ear import ROUTE, Ear


class Comm:
    """A comm with ipykernel 7.4's hook."""

    def _reply_subshell_for(self, data, default):
        return "the blocked shell"


def click(seq: int, action: str = "stop", value: object = None, sender: object = "page") -> dict[str, object]:
    return {"from": sender, "seq": seq, "action": action, "value": value}


def test_clicks_are_handled_once_in_order_off_the_hearing_thread() -> None:
    heard, done = [], Event()

    def handle(action, value):
        heard.append((action, value))
        if action == "stop":
            done.set()

    ear = Ear(handle)
    comm = Comm()
    assert ear.attach(comm)
    assert comm._reply_subshell_for({"method": "custom", "content": click(1, "hello")}, "sub") == "sub"
    assert ear.seen.is_set()
    for message in (click(2, "pause"), click(3, "resume"), click(3, "resume"), click(4, "budget", "$0.20"), click(5)):
        assert getattr(comm, ROUTE)({"content": message}, None) is None
    assert ear.hear(click(5)) is False  # delivered a second time, in the ordinary way
    assert done.wait(30)
    ear.close()
    assert heard == [("pause", None), ("resume", None), ("budget", "$0.20"), ("stop", None)]
    assert ear.hear(click(6)) is False


@pytest.mark.parametrize(
    "message",
    [
        None,
        "stop",
        {},
        click(1, "rm"),
        click(1, sender=7),
        click(1, sender="p" * 1000),
        {**click(1), "seq": "1"},
        {**click(1), "seq": True},
        click(1, "budget", 5),
        click(1, "budget", "9" * 1000),
    ],
)
def test_anything_else_is_not_a_click(message) -> None:
    ear = Ear(lambda *_: pytest.fail("handled"))
    assert ear.hear(message) is False
    ear.close()


def test_a_kernel_without_the_hook_is_told() -> None:
    ear = Ear(lambda *_: None)
    assert ear.attach(object()) is False
    ear.close()
