"""`depin doctor`: each part in one line, and what to do about those that are not well."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ..core import config
from ..core.errors import DepinError

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Check:
    """One part: `ok` None = optional and not there."""

    name: str
    ok: bool | None
    text: str
    todo: str = ""

    def line(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[self.ok]
        return f"{mark} {self.name:<13} {self.text}" + (f"\n     {'':<13} -> {self.todo}" if self.todo else "")


def checks() -> Iterator[Check]:
    """Runs the checks one by one; none of them changes anything but an empty state folder."""
    for check in (python, state_folder, torch, distributed, ports, hub, journal, chain, jupyterlab):
        try:
            yield check()
        except DepinError as error:
            yield Check(check.__name__.replace("_", " "), False, error.message, error.hint)
        except Exception as error:
            yield Check(check.__name__.replace("_", " "), False, f"{type(error).__name__}: {error}")


def python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "Python", sys.version_info >= MIN_PYTHON, f"{found} ({sys.executable})", "" if sys.version_info >= MIN_PYTHON else "Use 3.11+."
    )


def state_folder() -> Check:
    home = config.home()
    free = shutil.disk_usage(home).free
    probe = home / ".doctor"
    probe.write_bytes(b"")
    probe.unlink()
    low = free < MIN_FREE_BYTES
    return Check("state folder", not low, f"{home} ({free >> 30} GiB free)", "Free some space, or set DEPIN_HOME." if low else "")


def torch() -> Check:
    return _import("torch", "import torch; print(torch.randn(2, 2).sum().isfinite().item())", "pip install torch")


def distributed() -> Check:
    return _import("distributed", "import distributed, bokeh; print(distributed.__version__)", "pip install distributed bokeh")


def _import(name: str, code: str, todo: str) -> Check:
    """Imported in a process of its own: a broken library may end the process that loads it."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, False, "not installed", todo)
    tried = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or [f"exit {tried.returncode}"])[-1]
        return Check(name, False, f"{found} can't be imported: {reason}", f"{todo} --force-reinstall")
    return Check(name, True, found)


def ports() -> Check:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.settimeout(5.0)
        client.connect(server.getsockname())
        return Check("ports", True, f"loopback answers (tried {server.getsockname()[1]})")


def hub() -> Check:
    from ..hub.info import hub_pid
    from .remote import snapshot

    if hub_pid() is None:
        return Check("hub", None, "not running", "`depin up` starts it.")
    seen = snapshot()["hub"]
    waiting = [w["name"] for w in seen["workers"] if not w["ready"]]
    text = f"{seen['id']}, process {seen['pid']}, {len(seen['workers'])} workers, dashboard {seen['dashboard']}"
    return Check("hub", True, text, f"Still starting: {', '.join(waiting)}." if waiting else "")


def journal() -> Check:
    if not config.journal_file().exists():
        return Check("journal", None, "none yet", "The first `depin up` makes it.")
    from ..wiring import runs

    return Check("journal", True, f"{config.journal_file()} ({len(runs())} runs)")


def chain() -> Check:
    if not config.chain_file().exists():
        return Check("chain", None, "none yet", "The first `depin up` makes it.")
    from ..ledger.embedded import EmbeddedChain

    opened = EmbeddedChain()
    try:
        return Check("chain", True, opened.name)
    finally:
        opened.close()


def jupyterlab() -> Check:
    try:
        found = version("jupyterlab")
    except PackageNotFoundError:
        return Check("JupyterLab", None, "not installed; notebooks work without its sidebar", "pip install 'depin-nb[lab]'")
    installed = _labextension()
    if installed is None:
        return Check("JupyterLab", False, f"{found}, without depin-nb's sidebar", "Reinstall depin-nb with npm on the PATH.")
    return Check("JupyterLab", True, f"{found}, sidebar from {installed}")


def _labextension() -> str | None:
    """Where the built extension lies, if Jupyter would find it."""
    from pathlib import Path

    from jupyter_core.paths import jupyter_path

    found: Callable[[Path], bool] = lambda folder: (folder / "package.json").exists()  # noqa: E731
    for folder in (Path(p) / "labextensions" / "depin-nb" for p in jupyter_path()):
        if found(folder):
            return str(folder)
    return None
