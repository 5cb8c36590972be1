"""The hub's calls to workers that serve it (aggregators): by their Dask address, bounded in time, never unpickled."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed.core import rpc

from depin_nb.core.errors import HubDied
from depin_nb.hub.client import typed
from depin_nb.network import frames

CONNECT_S = 5.0
ANSWER_S = 120.0  # a sum of many large changes takes a while


class Peer:
    """One worker. Make it on the event loop that it is called on, and close it."""

    def __init__(self, address: str) -> None:
        frames.register()
        self.address = address
        self._rpc = rpc(address, timeout=CONNECT_S)

    async def call(self, op: str, **request: Any) -> Any:
        """Its answer. Raises HubDied when it can't be reached or doesn't answer, and its errors by their types."""
        try:
            answer = await asyncio.wait_for(getattr(self._rpc, op)(worker="", **frames.beside(request)), ANSWER_S)
        except (OSError, TimeoutError) as error:
            raise HubDied(f"{self.address} does not answer ({op}: {error})") from None
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise typed(answer["error"])
        return answer

    async def close(self) -> None:
        await self._rpc.close_rpc()
