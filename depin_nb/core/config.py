"""Where things are kept. `DEPIN_HOME` overrides the state folder (default: the user's data directory)."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import platformdirs

from .errors import ConfigError


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


def tree_bytes(default: int) -> int:
    """Beyond how many bytes of a round's changes trusted workers sum them up: `DEPIN_TREE_MB`, in MB (0 = always). Raises ConfigError."""
    said = os.environ.get("DEPIN_TREE_MB", "")
    if not said:
        return default
    try:
        value = float(said)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ConfigError(f"DEPIN_TREE_MB={said!r} is not a number of megabytes", hint="Set it to a number such as 160, or unset it.")
    return int(value * 1e6)


def journal_file() -> Path:
    return home() / "journal.sqlite"


def chain_file() -> Path:
    return home() / "chain.sqlite"


def wallets_dir() -> Path:
    return home() / "wallets"
