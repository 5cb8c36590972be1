"""Where things are kept. `DEPIN_HOME` overrides the state folder (default: the user's data directory)."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The state folder: journal, chain, wallets, checkpoints, hub.json. Made, for this user only, if it isn't there."""
    path = Path(os.environ.get("DEPIN_HOME") or platformdirs.user_data_dir("depin-nb", appauthor=False)).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def user() -> str:
    """Who runs this kernel: JupyterHub's user, else the system's. Said to the hub, which can't check it."""
    if name := os.environ.get("JUPYTERHUB_USER"):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in a container's passwd
        return f"user {os.getuid()}"


def hub_file() -> Path:
    """JSON of the running hub: scheduler address, status API URL and token, dashboard, pid."""
    return home() / "hub.json"


def journal_file() -> Path:
    return home() / "journal.sqlite"


def chain_file() -> Path:
    return home() / "chain.sqlite"


def wallets_dir() -> Path:
    return home() / "wallets"
