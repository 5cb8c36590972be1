"""The hub's status over HTTP and WebSocket, on loopback, for whoever has the token from hub.json: Jupyter's server, the CLI.

    GET  /api/status    {"hub": {...}, "runs": [Status.to_dict()], "workers": [Device dicts]}
    WS   /api/events    the same, pushed now and on each change, at most 4 times a second
    POST /api/control   {"run": id, "action": "pause" | "resume" | "stop" | "budget", "value": text}  ->  the run's status
    POST /api/shutdown  ends the hub in order

Errors are `{"error": {"type", "message", "hint"}}` with status 4xx. Every request needs `Authorization: Bearer <token>`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ..core.errors import DepinError, UsageError

log = logging.getLogger(__name__)

PUSH_INTERVAL_S = 0.25
MAX_BODY_BYTES = 64 << 10


class HubView(Protocol):
    """What the API shows and steers."""

    def snapshot(self) -> dict[str, Any]:
        """`{"hub", "runs", "workers"}`, JSON-plain."""
        ...

    async def control(self, run: str, action: str, value: Any) -> dict[str, Any]:
        """The run's status after it. Raises the typed errors of core/errors.py."""
        ...

    def shut_down(self) -> None: ...


class StatusApi:
    """The server: `url` and `token` once started."""

    def __init__(self, hub: HubView, *, host: str = "127.0.0.1") -> None:
        self.token = secrets.token_urlsafe(32)
        self._hub = hub
        self._host = host
        self._listeners: set[Events] = set()
        self._pusher: asyncio.Task[None] | None = None
        self._server: HTTPServer | None = None
        self.url = ""

    async def start(self) -> None:
        arguments = {"api": self}
        application = Application(
            [
                (r"/api/status", StatusHandler, arguments),
                (r"/api/events", Events, arguments),
                (r"/api/control", ControlHandler, arguments),
                (r"/api/shutdown", ShutdownHandler, arguments),
            ],
            log_function=lambda handler: None,  # a request every few hundred milliseconds is no news
        )
        sockets = bind_sockets(0, self._host)
        self._server = HTTPServer(application, max_body_size=MAX_BODY_BYTES)
        self._server.add_sockets(sockets)
        self.url = f"http://{self._host}:{sockets[0].getsockname()[1]}"
        self._pusher = asyncio.create_task(self._push())

    async def close(self) -> None:
        if self._pusher is not None:
            self._pusher.cancel()
            with suppress(asyncio.CancelledError):
                await self._pusher
        for listener in tuple(self._listeners):
            listener.close()
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()

    def admits(self, header: str | None) -> bool:
        """Whether an Authorization header carries the token (compared in constant time)."""
        return hmac.compare_digest((header or "").encode(), f"Bearer {self.token}".encode())

    def text(self) -> str:
        return json.dumps(self._hub.snapshot(), separators=(",", ":"))

    async def control(self, run: str, action: str, value: Any) -> dict[str, Any]:
        return await self._hub.control(run, action, value)

    def shut_down(self) -> None:
        self._hub.shut_down()

    def add(self, listener: Events) -> None:
        self._listeners.add(listener)
        listener.push(self.text())

    def remove(self, listener: Events) -> None:
        self._listeners.discard(listener)

    async def _push(self) -> None:
        while True:
            await asyncio.sleep(PUSH_INTERVAL_S)
            if not self._listeners:
                continue
            try:
                text = self.text()
            except Exception:
                log.exception("no status to push")
                continue
            for listener in tuple(self._listeners):
                listener.push(text)


class _Handler(RequestHandler):
    api: StatusApi

    def initialize(self, api: StatusApi) -> None:
        self.api = api

    def prepare(self) -> None:
        if not self.api.admits(self.request.headers.get("Authorization")):
            raise HTTPError(401)

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")

    def body(self) -> dict[str, Any]:
        try:
            data = json.loads(self.request.body or b"{}")
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise UsageError("the body is not a JSON object", hint="Send run, action and value.")
        return data

    async def answer(self, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Writes what `work` gives, or its typed error with status 400."""
        try:
            self.write(json.dumps(await work()))
        except DepinError as error:
            self.set_status(400)
            self.write(json.dumps({"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint}}))

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish(json.dumps({"error": {"type": "HubError", "message": self._reason, "hint": "The token is in hub.json."}}))


class StatusHandler(_Handler):
    def get(self) -> None:
        self.write(self.api.text())


class ControlHandler(_Handler):
    async def post(self) -> None:
        async def work() -> dict[str, Any]:
            body = self.body()
            return await self.api.control(str(body.get("run") or ""), str(body.get("action") or ""), body.get("value"))

        await self.answer(work)


class ShutdownHandler(_Handler):
    def post(self) -> None:
        self.write("{}")
        self.finish()
        self.api.shut_down()


class Events(WebSocketHandler):
    api: StatusApi

    def initialize(self, api: StatusApi) -> None:
        self.api = api
        self._last = ""
        self._sending: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        if not self.api.admits(self.request.headers.get("Authorization")):
            raise HTTPError(401)

    def check_origin(self, origin: str) -> bool:
        return False  # no browser talks to the hub itself; Jupyter's server, which sends no Origin, passes things on

    def open(self, *_: str, **__: str) -> None:
        self.set_nodelay(True)
        self.api.add(self)

    def on_close(self) -> None:
        self.api.remove(self)

    def on_message(self, message: str | bytes) -> None:
        """Nothing is expected."""

    def push(self, text: str) -> None:
        """Sends `text` unless it is what was sent last, or the one before is still on its way (a slow reader gets fewer)."""
        if text == self._last or (self._sending is not None and not self._sending.done()):
            return
        self._last = text
        self._sending = asyncio.ensure_future(self._send(text))

    async def _send(self, text: str) -> None:
        with suppress(WebSocketClosedError):
            await self.write_message(text)
