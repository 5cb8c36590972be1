"""The interfaces between decisions and the world. Implementations are chosen in one place, `wiring.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Clock(Protocol):
    """Time. `now` is wall time (s since the epoch), `monotonic` only grows (s)."""

    def now(self) -> float: ...
    def monotonic(self) -> float: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass(frozen=True)
class WorkerSpec:
    """One worker to start: its name in the cluster, its device profile's name, and what a backend needs beside."""

    name: str
    profile: str
    options: Mapping[str, Any]


class Backend(Protocol):
    """Starts and stops workers that dial the hub. Never sees leases, weights or money."""

    name: str
    simulated: bool

    def plan(self, count: int, existing: Sequence[str]) -> list[WorkerSpec]:
        """The workers to add so that `count` are there beside none other than `existing` names."""
        ...

    def command(self, spec: WorkerSpec, scheduler: str) -> tuple[list[str], dict[str, str]]:
        """The argv and extra environment of the worker's process."""
        ...


class Chain(Protocol):
    """Where tokens live: the embedded LiteSVM, devnet or mainnet. Amounts are integer base units."""

    name: str
    simulated: bool

    def send(self, signed: bytes) -> str:
        """Submits a signed transaction; returns its signature. Sending the same bytes again has no further effect. Raises ChainError."""
        ...

    def confirmed(self, signature: str) -> bool | None:
        """True when it succeeded, False when it failed, None when the chain doesn't know it."""
        ...

    def latest_blockhash(self) -> str: ...

    def account(self, address: str) -> bytes | None:
        """The data of an account, None where there is none."""
        ...

    def transaction(self, signature: str) -> bytes | None:
        """The bytes of a transaction that succeeded, None where there is none."""
        ...
