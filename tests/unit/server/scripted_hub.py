"""The hub's real status API over a scripted hub: what the Jupyter server sees of a hub, without workers. Beside it, sample statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from depin_nb.core.errors import NoSuchRun
from depin_nb.hub.status_api import StatusApi


class ScriptedHub:
    """Implements `HubView`. Tests set `shown`; controls that came are in `asked`."""

    def __init__(self, shown: dict[str, Any]) -> None:
        self.shown = shown
        self.asked: list[tuple[str, str, Any]] = []
        self.api = StatusApi(self)

    def snapshot(self) -> dict[str, Any]:
        return self.shown

    async def control(self, run: str, action: str, value: Any) -> dict[str, Any]:
        if run not in {shown["run_id"] for shown in self.shown["runs"]}:
            raise NoSuchRun(f"{run} isn't a run of this hub.", run_id=run)
        self.asked.append((run, action, value))
        return {"run_id": run, "state": "stopping" if action == "stop" else "running"}

    def shut_down(self) -> None: ...

    async def start(self, hub_file: Path) -> None:
        """Listens, and says where in `hub_file`, as a hub does."""
        await self.api.start()
        self.write(hub_file)

    def write(self, hub_file: Path, **changed: Any) -> None:
        fields = {"hub_id": "hub-test", "status_url": self.api.url, "status_token": self.api.token, **changed}
        hub_file.write_text(json.dumps(fields))
