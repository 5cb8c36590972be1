"""What the browser may see of the hub, and what it may ask of it: pure checks of JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

ACTIONS = ("pause", "resume", "stop", "budget")
MAX_TEXT = 200  # run ids and budgets are short; anything longer is a mistake
SECRET_FIELDS = frozenset({"status_token", "token"})


@dataclass(frozen=True)
class HubAddress:
    """Where the running hub's status API is. `url` has no trailing slash. The token stays out of reprs."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"HubAddress({self.url!r}, token=<hidden>)"

    @property
    def ws_url(self) -> str:
        return "ws" + self.url.removeprefix("http")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True)
class Control:
    """A checked request to a run. `value` is the new budget as text, for `budget` only."""

    run: str
    action: str
    value: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.run, "action": self.action, "value": self.value}


def empty() -> dict[str, Any]:
    """The snapshot when no hub runs."""
    return {"hub": None, "runs": [], "workers": []}


def address_from(data: Any) -> HubAddress | None:
    """The address in a decoded hub.json, None where it has none that can be used."""
    if not isinstance(data, dict):
        return None
    url, token = data.get("status_url"), data.get("status_token")
    if not isinstance(url, str) or not isinstance(token, str) or not token.isascii() or not token.isprintable():
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return HubAddress(url.rstrip("/"), token)


def browser_view(data: Any) -> dict[str, Any]:
    """The hub's answer without anything secret. Raises ValueError unless it has the status API's shape."""
    if not isinstance(data, dict) or not isinstance(data.get("runs"), list) or not isinstance(data.get("workers"), list):
        raise ValueError("not a hub's status")
    hub = data.get("hub")
    if not isinstance(hub, dict):
        raise ValueError("not a hub's status")
    return {"hub": {k: v for k, v in hub.items() if k not in SECRET_FIELDS}, "runs": data["runs"], "workers": data["workers"]}


def control_from(data: Any) -> Control:
    """A request body as a Control. Raises ValueError with a message for people."""
    if not isinstance(data, dict):
        raise ValueError("The body must be a JSON object with run and action.")
    run, action, value = data.get("run"), data.get("action"), data.get("value")
    if not isinstance(run, str) or not 0 < len(run) <= MAX_TEXT:
        raise ValueError("run must be a run's id.")
    if action not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}.")
    if action != "budget":
        return Control(run, action)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ValueError("value must be the new budget as text, such as $0.20.")
    return Control(run, action, value)
