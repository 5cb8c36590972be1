"""A real Jupyter server or JupyterLab as a process of its own: loopback, a free port, a token, and only its own folders."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TOKEN = "login-token"
WAIT_S = 90
STOP_S = 20  # a server that is told to end while it starts a kernel may not; kernels of a killed one end by themselves

# Says its address once it listens: callbacks run in order, and the one that binds is there after initialize.
LAUNCH = """
import sys
from {module} import {app}
server = {app}.initialize_server(sys.argv[1:])
server.io_loop.add_callback(lambda: print(server.port, flush=True))
server.start()
"""
LAB = LAUNCH.format(module="jupyterlab.labapp", app="LabApp")
BARE = """
import sys
from jupyter_server.serverapp import ServerApp
server = ServerApp.instance()
server.initialize(sys.argv[1:])
server.io_loop.add_callback(lambda: print(server.port, flush=True))
server.start()
"""


@dataclass(frozen=True)
class JupyterProcess:
    """`url` ends with a slash. `home`: its folders; `depin_home`: the hub's state folder; `root`: where notebooks are served from."""

    url: str
    home: Path
    pid: int

    @property
    def depin_home(self) -> Path:
        return self.home / "depin"

    @property
    def root(self) -> Path:
        return self.home / "root"

    def log(self) -> str:
        return (self.home / "jupyter.log").read_text()


def environment(home: Path) -> dict[str, str]:
    """This process's environment with every folder that Jupyter, IPython and depin write to below `home`."""
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_PATH": "first",  # looked at before what is installed
        "IPYTHONDIR": "ipython",
        "DEPIN_HOME": "depin",
    }
    for folder in (*folders.values(), "root"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    return {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}}


@contextmanager
def running(home: Path, *arguments: str, lab: bool = False) -> Iterator[JupyterProcess]:
    """Starts the process, waits until it listens, and ends it (and its kernels) afterwards."""
    common = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={TOKEN}"]
    enable = "--ServerApp.jpserver_extensions={'depin_nb.server': True}"
    command = [sys.executable, "-c", LAB if lab else BARE, *common, enable, f"--ServerApp.root_dir={home / 'root'}", *arguments]
    with open(home / "jupyter.log", "w") as log:
        process = subprocess.Popen(
            command, env=environment(home), cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        said: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(
            target=lambda lines: [said.put(line) for line in lines] or said.put(""), args=(process.stdout,), daemon=True
        )
        reader.start()
        try:
            port = said.get(timeout=WAIT_S).strip()
            assert port.isdigit(), (home / "jupyter.log").read_text()
            yield JupyterProcess(f"http://127.0.0.1:{port}/", home, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join(timeout=STOP_S)
            process.stdout.close()


def _pass_on(lines: IO[str], said: queue.Queue[str]) -> None:
    for line in lines:
        said.put(line)
    said.put("")  # it ended: whoever waits shall not wait on
