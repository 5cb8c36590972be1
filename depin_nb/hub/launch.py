"""Starts, finds and stops the hub of a state folder. Finding one imports neither torch nor distributed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from depin_nb.hub.info import FileLock, HubInfo, hub_pid, log_file

from ..core import config
from ..core.errors import HubError

START_TIMEOUT_S = 90.0  # importing torch, distributed and bokeh from a cold disk took 20 s at worst here
STOP_TIMEOUT_S = 30.0
MAX_LOG_BYTES = 4 << 20
_STEP_S = 0.1


def find_hub() -> HubInfo | None:
    """The running hub of this state folder, or None. A hub.json that a killed hub left behind counts as none."""
    pid = hub_pid()
    info = HubInfo.read() if pid is not None else None
    return info if info is not None and info.pid == pid else None


def start_hub(*, idle_timeout_s: float | None = None) -> HubInfo:
    """The running hub of this state folder, started if there is none.

    The hub is a process of its own session: it survives this process, and an interrupt here doesn't reach it.
    Raises HubError, with the end of the hub's log, when it doesn't get ready.
    """
    # one starter at a time: a second kernel waits here and then finds what the first one started
    with FileLock(config.home() / "launch.lock"):
        return _spawn(idle_timeout_s) if hub_pid() is None else _await_info(idle_timeout_s)


def stop_hub(info: HubInfo) -> None:
    """Stops a hub and its workers in order, and waits until it is gone. Raises HubError when it doesn't end."""
    if hub_pid() != info.pid:
        return
    request = urllib.request.Request(
        f"{info.status_url}/api/shutdown", method="POST", headers={"Authorization": f"Bearer {info.status_token}"}, data=b"{}"
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5.0):
            pass
    except (urllib.error.URLError, OSError):
        _signal(info, signal.SIGTERM)
    for last_resort in (signal.SIGTERM, signal.SIGKILL, None):
        if _gone_within(info, STOP_TIMEOUT_S if last_resort is signal.SIGTERM else 5.0):
            return
        if last_resort is not None:
            _signal(info, last_resort)
    raise HubError(f"the hub (process {info.pid}) doesn't end", hint=f"See {log_file()}; end that process by hand.")


def _spawn(idle_timeout_s: float | None) -> HubInfo:
    log = log_file()
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        os.replace(log, log.with_suffix(".log.1"))
    started_at_byte = log.stat().st_size if log.exists() else 0
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "depin_nb.hub", "--detach", "--ready-fd", str(writer)]
    if idle_timeout_s is not None:
        command += ["--idle-timeout", str(idle_timeout_s)]
    try:
        with open(log, "ab") as output:
            # the process forks once more and ends at once, so that the hub is nobody's child here and leaves no zombie
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(writer,),
                start_new_session=True,
                check=True,
                env={**os.environ, "DEPIN_HOME": str(config.home())},
            )
        os.close(writer)
        writer = -1
        ready = _read_line(reader, START_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise HubError(f"the hub could not be started (exit {error.returncode}){_quoted(log, started_at_byte)}") from None
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if ready == "taken\n":
        return _await_info(idle_timeout_s)
    info = HubInfo.read()
    if ready is None:
        raise HubError(f"the hub did not get ready within {START_TIMEOUT_S:.0f} s{_quoted(log, started_at_byte)}", hint=f"See {log}.")
    if ready != "ready\n" or info is None:
        raise HubError(
            f"the hub ended while it started{_quoted(log, started_at_byte)}", hint=f"See {log}; `depin doctor` checks the parts."
        )
    return info


def _read_line(reader: int, timeout_s: float) -> str | None:
    """The line that the hub writes when it is ready; "" when it ended before, None when the time is over."""
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        if time.monotonic() > deadline:
            return None
        readable, _, _ = select.select([reader], [], [], _STEP_S)
        if readable:
            part = os.read(reader, 4096)
            if not part:
                return ""
            line += part
    return line.decode()


def _await_info(idle_timeout_s: float | None) -> HubInfo:
    """The info of a hub that lives, but that may just be starting (by hand) or stopping: then another one is started."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if hub_pid() is None:
            return _spawn(idle_timeout_s)
        info = find_hub()
        if info is not None:
            return info
        time.sleep(_STEP_S)
    raise HubError("a hub holds this state folder but doesn't answer", hint=f"See {log_file()}.")


def _gone_within(info: HubInfo, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if hub_pid() != info.pid:
            return True
        time.sleep(_STEP_S)
    return False


def _signal(info: HubInfo, number: signal.Signals) -> None:
    """Signals the hub's process, only while the lock says that the process of that pid is still the hub."""
    if hub_pid() == info.pid:
        with suppress(ProcessLookupError):
            os.kill(info.pid, number)


def _quoted(log: Path, start: int, lines: int = 12) -> str:
    """The end of what the log holds from byte `start` on, for an error's message."""
    try:
        with open(log, "rb") as file:
            file.seek(start)
            text = file.read()[-8192:].decode(errors="replace")
    except OSError:
        return ""
    tail = [line for line in text.splitlines() if line.strip()][-lines:]
    return "; its log ends with:\n" + "\n".join(f"  | {line}" for line in tail) if tail else ""
