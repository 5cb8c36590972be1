"""The running hub's status API, asked with the standard library alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from ..core.errors import HubDied, NoHub

TIMEOUT_S = 10.0


def snapshot() -> dict[str, Any]:
    """`{"hub", "runs", "workers"}`. Raises NoHub or HubDied."""
    from ..hub.launch import find_hub

    info = find_hub()
    if info is None:
        raise NoHub("no hub is running", hint="`depin up` starts one.")
    request = urllib.request.Request(f"{info.status_url}/api/status", headers={"Authorization": f"Bearer {info.status_token}"})
    try:
        # loopback, so whatever proxy the environment names isn't asked
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise HubDied(f"the hub (process {info.pid}) does not answer: {error}") from None
