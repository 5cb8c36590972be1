"""Connections that can be cut: a port of this machine for each worker, through which it reaches the hub."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

CHUNK_BYTES = 1 << 16


class Cables:
    """All of them, on a thread of its own. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: dict[str, asyncio.Server] = {}
        self._open: dict[str, set[asyncio.StreamWriter]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="cables", daemon=True)
        self._thread.start()

    def lay(self, name: str, hub: str) -> str:
        """A new cable to the hub (`tcp://host:port`); returns the address at this end."""
        host, port = hub.removeprefix("tcp://").rsplit(":", 1)
        return str(self._do(self._lay(name, host, int(port))))

    def cut(self, name: str) -> int:
        """Closes every connection over that cable, for good; returns how many there were."""
        return int(self._do(self._cut(name)))

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _lay(self, name: str, host: str, port: int) -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends = self._open[name]
            ends.add(writer)
            with suppress(OSError, asyncio.CancelledError):
                far_reader, far_writer = await asyncio.open_connection(host, port)
                ends.add(far_writer)
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

        self._open[name] = set()
        server = self._servers[name] = await asyncio.start_server(serve, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()

    async def _cut(self, name: str) -> int:
        self._servers[name].close()
        ends = self._open[name]
        for writer in ends:
            writer.transport.abort()
        return len(ends) // 2

    async def _end(self) -> None:
        for name in self._servers:
            await self._cut(name)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __enter__(self) -> Cables:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
