"""The extension inside a real Jupyter server process: login, XSRF, what reaches the browser."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import samples
from jupyter_process import TOKEN, running
from scripted_hub import ScriptedHub
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.websocket import websocket_connect

pytest.importorskip("jupyter_server", reason="the Jupyter server comes with the extra depin-nb[lab]")

WAIT_S = 60


def with_jupyter(tmp_path: Path, body: Callable[[str, ScriptedHub], Awaitable[None]]) -> None:
    async def main() -> None:
        hub = ScriptedHub(samples.snapshot(samples.run()))
        try:
            with running(tmp_path) as jupyter:
                await hub.start(jupyter.depin_home / "hub.json")
                await body(jupyter.url, hub)
        finally:
            await hub.api.close()

    asyncio.run(main())


async def fetch(url: str, *, code: int = 200, body: Any = None, **headers: str) -> HTTPResponse:
    request = HTTPRequest(
        url,
        method="GET" if body is None else "POST",
        body=None if body is None else json.dumps(body),
        headers={k.replace("_", "-"): v for k, v in headers.items()},
        follow_redirects=False,
    )
    response = await AsyncHTTPClient().fetch(request, raise_error=False)
    assert response.code == code, response.body
    return response


def test_only_who_is_logged_in_sees_and_steers(tmp_path):
    async def body(url: str, hub: ScriptedHub) -> None:
        api, token = f"{url}depin-nb/api/", {"Authorization": f"token {TOKEN}"}
        stop = {"run": "run-7f3c", "action": "stop"}

        await fetch(f"{api}status", code=403)
        await fetch(f"{api}control", code=403, body=stop)
        with pytest.raises(HTTPClientError, match="403"):
            await websocket_connect(f"ws{url.removeprefix('http')}depin-nb/api/events")
        assert hub.asked == []

        response = await fetch(f"{api}status", **token)
        assert json.loads(response.body)["runs"][0]["name"] == "digits"
        assert hub.api.token.encode() not in response.body

        connection = await websocket_connect(HTTPRequest(f"ws{url.removeprefix('http')}depin-nb/api/events", headers=token))
        async with asyncio.timeout(WAIT_S):
            while not (seen := json.loads(await connection.read_message()))["runs"]:
                pass
            hub.shown = samples.snapshot(samples.run(state="paused"))
            while (seen := json.loads(await connection.read_message()))["runs"][0]["state"] != "paused":
                pass
        assert seen["hub"] == {"id": "hub-test", "dashboard": "http://127.0.0.1:8787/status"}
        connection.close()

        assert json.loads((await fetch(f"{api}control", body=stop, **token)).body)["state"] == "stopping"
        assert hub.asked == [("run-7f3c", "stop", None)]
        refused = await fetch(f"{api}control", code=400, body={**stop, "run": "run-none"}, **token)
        assert json.loads(refused.body)["hint"] == "`%depin runs` lists the runs."
        await fetch(f"{api}control", code=400, body={"run": "run-7f3c", "action": "shutdown"}, **token)
        await fetch(f"{api}control", code=413, body={**stop, "value": "x" * 20_000}, **token)

        # a browser's cookie alone is not enough for a POST: Jupyter's XSRF check stays on
        login = await fetch(f"{url}api/status?token={TOKEN}")
        cookies = "; ".join(c.split(";")[0] for c in login.headers.get_list("Set-Cookie"))
        await fetch(f"{api}status", Cookie=cookies)
        await fetch(f"{api}control", code=403, body=stop, Cookie=cookies)
        # nor may another site's page listen with it
        events = f"ws{url.removeprefix('http')}depin-nb/api/events"
        (await websocket_connect(HTTPRequest(events, headers={"Cookie": cookies}))).close()
        with pytest.raises(HTTPClientError, match="403"):
            await websocket_connect(HTTPRequest(events, headers={"Cookie": cookies, "Origin": "http://elsewhere.example"}))
        assert len(hub.asked) == 1

        # the hub is gone
        await hub.api.close()
        assert json.loads((await fetch(f"{api}status", **token)).body) == {"hub": None, "runs": [], "workers": []}
        died = await fetch(f"{api}control", code=503, body=stop, **token)
        assert "%depin up" in json.loads(died.body)["hint"]

    with_jupyter(tmp_path, body)


def test_the_extension_is_light():
    code = "import sys, depin_nb.server.handlers; print([m for m in ('torch', 'distributed', 'anywidget') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_installing_enables_the_extension():
    import depin_nb.server

    config = Path(depin_nb.server.__file__).with_name("jupyter_server_config.d") / "depin_nb.json"
    enabled = json.loads(config.read_text())["ServerApp"]["jpserver_extensions"]
    assert enabled == {point["module"]: True for point in depin_nb.server._jupyter_server_extension_points()}
