"""One connection from the Jupyter server to the hub, shared by all browser tabs. It lives while somebody listens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from ..core.errors import HubDied, HubError, NoHub
from .snapshot import Control, HubAddress, address_from, browser_view, empty

Listener = Callable[[str], None]
UNREACHABLE = (OSError, HTTPClientError, asyncio.TimeoutError)

POLL_S = 1.0  # how often hub.json is looked for while no hub runs
MAX_BACKOFF_S = 10.0
REQUEST_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 32 << 20  # a status with hundreds of runs stays far below


class HubLink:
    """Reads hub.json, follows the hub's events, sends it controls. Belongs to the Jupyter server's event loop.

    `hub_file` is a function, so that a changed DEPIN_HOME is seen.
    """

    def __init__(self, hub_file: Callable[[], Path], *, log: logging.Logger, poll_s: float = POLL_S) -> None:
        self._hub_file = hub_file
        self._log = log
        self._poll_s = poll_s
        self._listeners: set[Listener] = set()
        self._latest = json.dumps(empty())
        self._task: asyncio.Task[None] | None = None

    def address(self) -> HubAddress | None:
        """The running hub's address, None where hub.json is missing or unusable."""
        try:
            return address_from(json.loads(self._hub_file().read_text()))
        except (OSError, ValueError):
            return None

    async def status(self) -> dict[str, Any]:
        """The hub's status now; the empty one where no hub answers."""
        address = self.address()
        if address is None:
            return empty()
        try:
            return browser_view(await self._request(address, "GET", "/api/status"))
        except (*UNREACHABLE, ValueError) as error:
            self._log.debug("depin: no status from %r: %s", address, error)
            return empty()

    async def control(self, control: Control) -> tuple[int, dict[str, Any]]:
        """The hub's HTTP status and answer. Raises NoHub or HubDied."""
        address = self.address()
        if address is None:
            raise NoHub("No hub is running.")
        try:
            return 200, await self._request(address, "POST", "/api/control", control.to_dict())
        except HTTPClientError as error:
            if error.response is None:  # tornado's own 599: no answer came
                raise HubDied("The hub does not answer.") from None
            return error.code, _problem(error)
        except UNREACHABLE:
            raise HubDied("The hub does not answer.") from None
        except ValueError:
            raise HubError("The hub's answer was not understood.") from None

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with the status as JSON text, now and on each change, until the returned function is called."""
        self._listeners.add(listener)
        if self._task is None:
            self._latest = json.dumps(empty())
            self._task = asyncio.get_running_loop().create_task(self._follow())
        listener(self._latest)

        def unsubscribe() -> None:
            self._listeners.discard(listener)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

        return unsubscribe

    async def _follow(self) -> None:
        failures = 0
        while True:
            address = self.address()
            if address is None:
                failures = 0
                self._publish(empty())
                await asyncio.sleep(self._poll_s)
                continue
            try:
                heard = await self._listen(address)
            except (*UNREACHABLE, ValueError) as error:
                self._log.debug("depin: lost %r: %s", address, error)
                heard = False
            except Exception as error:  # the link must outlive anything a broken hub does
                self._log.warning("depin: the link to the hub failed and is tried again: %r", error)
                heard = False
            self._publish(empty())
            failures = 0 if heard else failures + 1
            await asyncio.sleep(min(self._poll_s * 2 ** min(failures, 8), MAX_BACKOFF_S))

    async def _listen(self, address: HubAddress) -> bool:
        """Publishes what the hub pushes until it closes; whether anything came."""
        request = HTTPRequest(f"{address.ws_url}/api/events", headers=address.headers, connect_timeout=REQUEST_TIMEOUT_S)
        connection = await websocket_connect(request, max_message_size=MAX_MESSAGE_BYTES, ping_interval=20)
        heard = False
        try:
            while (message := await connection.read_message()) is not None:
                self._publish(browser_view(json.loads(message)))
                heard = True
        finally:
            connection.close()
        return heard

    def _publish(self, snapshot: dict[str, Any]) -> None:
        text = json.dumps(snapshot)
        if text == self._latest:
            return
        self._latest = text
        for listener in tuple(self._listeners):
            listener(text)

    async def _request(self, address: HubAddress, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = HTTPRequest(
            address.url + path,
            method=method,
            headers={**address.headers, "Content-Type": "application/json"},
            body=None if body is None else json.dumps(body),
            connect_timeout=REQUEST_TIMEOUT_S,
            request_timeout=REQUEST_TIMEOUT_S,
            follow_redirects=False,
        )
        response = await AsyncHTTPClient().fetch(request)
        answer = json.loads(response.body)
        if not isinstance(answer, dict):
            raise ValueError("not a JSON object")
        return answer


def _problem(error: HTTPClientError) -> dict[str, Any]:
    """The hub's refusal as `{message, hint}`, whatever form its body has."""
    try:
        body = json.loads(error.response.body) if error.response else {}
    except ValueError:
        body = {}
    problem = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(problem, dict):
        problem = {"message": str(problem)}
    return {"message": str(problem.get("message") or error.message), "hint": str(problem.get("hint") or "")}
