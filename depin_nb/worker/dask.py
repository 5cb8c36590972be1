"""A Dask worker that tells why it was closed."""

from __future__ import annotations

from typing import Any

import distributed


class Worker(distributed.Worker):
    """`closed_for`: the first reason that `close` was given; "" while it is open."""

    closed_for = ""

    async def close(self, *args: Any, reason: str = "worker-close", **options: Any) -> str | None:
        self.closed_for = self.closed_for or reason
        return await super().close(*args, reason=reason, **options)
