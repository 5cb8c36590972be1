"""Where things are kept. `DEPIN_HOME` overrides the state folder (default: the user's data directory)."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The state folder: journal, chain, wallets, checkpoints, hub.json. Made, for this user only, if it isn't there."""
    path = Path(os.environ.get("DEPIN_HOME") or platformdirs.user_data_dir("depin-nb", appauthor=False)).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def hub_file() -> Path:
    """JSON of the running hub: scheduler address, status API URL and token, dashboard, pid."""
    return home() / "hub.json"


def journal_file() -> Path:
    return home() / "journal.sqlite"


def chain_file() -> Path:
    return home() / "chain.sqlite"


def wallets_dir() -> Path:
    return home() / "wallets"
