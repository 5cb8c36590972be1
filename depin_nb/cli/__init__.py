"""`depin`: the hub, its workers, the journal and the ledger from a terminal."""

from .command import main

__all__ = ["main"]
