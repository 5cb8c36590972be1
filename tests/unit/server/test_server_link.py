"""HubLink against the hub's real status API (over a scripted hub)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import samples
from scripted_hub import ScriptedHub

from depin_nb.core.errors import HubDied, NoHub
from depin_nb.server.link import HubLink
from depin_nb.server.snapshot import Control, empty

WAIT_S = 10


class Heard:
    """What a subscriber heard; `until` waits for a snapshot that fits."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    def __call__(self, text: str) -> None:
        self.all.append(json.loads(text))
        self._news.set()

    async def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            while not (self.all and fits(self.all[-1])):
                self._news.clear()
                await self._news.wait()
        return self.all[-1]


def with_hub(tmp_path: Path, body: Callable[[HubLink, ScriptedHub, Path], Awaitable[None]]) -> None:
    async def main() -> None:
        hub, file = ScriptedHub(samples.snapshot(samples.run())), tmp_path / "hub.json"
        await hub.start(file)
        try:
            await body(HubLink(lambda: file, log=logging.getLogger("test"), poll_s=0.01), hub, file)
        finally:
            await hub.api.close()

    asyncio.run(main())


def test_status_and_control_reach_the_hub(tmp_path):
    async def body(link: HubLink, hub: ScriptedHub, file: Path) -> None:
        assert (await link.status())["runs"][0]["run_id"] == "run-7f3c"
        assert await link.control(Control("run-7f3c", "stop")) == (200, {"run_id": "run-7f3c", "state": "stopping"})
        assert hub.asked == [("run-7f3c", "stop", None)]

    with_hub(tmp_path, body)


def test_a_refusal_keeps_the_hubs_words(tmp_path):
    async def body(link: HubLink, hub: ScriptedHub, file: Path) -> None:
        code, answer = await link.control(Control("run-none", "stop"))
        assert code == 400
        assert answer == {"message": "run-none isn't a run of this hub.", "hint": "`%depin runs` lists the runs."}

    with_hub(tmp_path, body)


def test_a_listener_hears_each_change_until_it_leaves(tmp_path):
    async def body(link: HubLink, hub: ScriptedHub, file: Path) -> None:
        heard, other = Heard(), Heard()
        leave = link.subscribe(heard)
        leave_other = link.subscribe(other)
        await heard.until(lambda s: s["runs"] != [])
        leave_other()
        before = len(other.all)
        hub.shown = samples.snapshot(samples.run(state="paused"))
        await heard.until(lambda s: bool(s["runs"]) and s["runs"][0]["state"] == "paused")
        assert len(other.all) == before
        leave()
        assert link._task is None

    with_hub(tmp_path, body)


def test_a_hub_that_comes_and_goes_is_followed(tmp_path):
    async def body(link: HubLink, hub: ScriptedHub, file: Path) -> None:
        file.unlink()
        heard = Heard()
        leave = link.subscribe(heard)
        assert heard.all == [empty()]
        hub.write(file)
        await heard.until(lambda s: s["hub"] is not None)
        file.unlink()
        await hub.api.close()
        await heard.until(lambda s: s == empty())
        hub.api = type(hub.api)(hub)
        await hub.start(file)
        await heard.until(lambda s: s["hub"] is not None)
        leave()

    with_hub(tmp_path, body)


def test_a_wrong_token_shows_no_hub(tmp_path):
    async def body(link: HubLink, hub: ScriptedHub, file: Path) -> None:
        hub.write(file, status_token="wrong")
        assert await link.status() == empty()
        assert (await link.control(Control("run-7f3c", "stop")))[0] == 401
        assert hub.asked == []

    with_hub(tmp_path, body)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"status_url": "http://127.0.0.1:1", "status_token": "t"}'])
def test_no_usable_hub_is_the_empty_status(tmp_path, content):
    file = tmp_path / "hub.json"
    if content is not None:
        file.write_text(content)
    link = HubLink(lambda: file, log=logging.getLogger("test"))

    async def main() -> None:
        assert await link.status() == empty()
        with pytest.raises((NoHub, HubDied)):
            await link.control(Control("run-7f3c", "stop"))

    asyncio.run(main())
