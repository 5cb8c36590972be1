"""HTTP and WebSocket handlers under depin-nb/api/, all behind Jupyter's login, its authorizer and (for POST) its XSRF check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ..core.errors import DepinError, HubDied, NoHub
from .link import HubLink
from .snapshot import control_from

RESOURCE = "depin-nb"  # what a Jupyter authorizer sees: read = status and events, write = control
MAX_BODY_BYTES = 16 << 10


def routes(base_url: str, link: HubLink) -> list[tuple[str, type[web.RequestHandler], dict[str, Any]]]:
    """The handlers with their addresses."""
    handlers = {"status": StatusHandler, "control": ControlHandler, "events": EventsHandler}
    return [(url_path_join(base_url, "depin-nb", "api", name), handler, {"link": link}) for name, handler in handlers.items()]


class StatusHandler(APIHandler):
    """GET: the hub, its runs and its workers once."""

    auth_resource = RESOURCE

    def initialize(self, link: HubLink) -> None:
        self.link = link

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.finish(json.dumps(await self.link.status()))


class ControlHandler(APIHandler):
    """POST {run, action, value}: pause, resume, stop or a new budget. 400 for a malformed request, 503 where no hub answers."""

    auth_resource = RESOURCE

    def initialize(self, link: HubLink) -> None:
        self.link = link

    @web.authenticated
    @authorized
    async def post(self) -> None:
        if len(self.request.body) > MAX_BODY_BYTES:
            return self._answer(413, {"message": "The request is too long.", "hint": ""})
        try:
            control = control_from(json.loads(self.request.body))
        except ValueError as error:
            return self._answer(400, {"message": str(error), "hint": ""})
        try:
            code, answer = await self.link.control(control)
        except DepinError as error:
            code = 503 if isinstance(error, (NoHub, HubDied)) else 502
            answer = {"message": error.message, "hint": error.hint}
        return self._answer(code, answer)

    def _answer(self, code: int, answer: dict[str, Any]) -> None:
        self.set_status(code)
        self.finish(json.dumps(answer))


class EventsHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """Pushes the status on each change. A browser that reads slowly gets the newest only; what it sends is ignored."""

    auth_resource = RESOURCE
    _unsubscribe: Callable[[], None] | None = None
    _waiting: str | None = None
    _writing = False

    def initialize(self, link: HubLink) -> None:
        self.link = link

    def set_default_headers(self) -> None:
        """A WebSocket has no document headers (undoes JupyterHandler's)."""

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        if not await ensure_async(self.authorizer.is_authorized(self, self.current_user, "read", RESOURCE)):
            raise web.HTTPError(403)
        await super().get(*args, **kwargs)

    def open(self, *args: Any, **kwargs: Any) -> None:
        super().open(*args, **kwargs)
        self._unsubscribe = self.link.subscribe(self._offer)

    def on_message(self, message: str | bytes) -> None:
        """The browser has nothing to say here."""

    def on_close(self) -> None:
        super().on_close()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _offer(self, text: str) -> None:
        self._waiting = text
        if not self._writing:
            self._writing = True
            self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._waiting is not None:
                text, self._waiting = self._waiting, None
                await self.write_message(text)
        except WebSocketClosedError:
            pass
        finally:
            self._writing = False
