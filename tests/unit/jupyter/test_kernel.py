"""In a real ipykernel: the panel hears a click while its cell blocks, and leaves plain HTML; loading stays light; errors fail the cell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from depin_nb.jupyter.panel import SESSION, WIDGET_MIME

WAIT_S = 60.0
STATUS = """
from depin_nb.core.status import Status
status = Status("run-1", "t", "running", "sync", "cell 1", "local", False, 0.0, iterations_total=10)
"""
BLOCKING = (
    STATUS
    + """
import threading
from depin_nb.jupyter.display import LiveDisplay
stopped, heard = threading.Event(), []
def control(run_id, action, value):
    heard.append((run_id, action, value))
    stopped.set()
live = LiveDisplay(get_ipython(), control=control)
live.update(status)
was_heard = stopped.wait(40)
live.finish()
print(was_heard, heard)
"""
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingKernelClient]:
    home = str(tmp_path_factory.mktemp("ipython"))
    manager = KernelManager()
    manager.start_kernel(
        extra_arguments=["--HistoryManager.enabled=False"],
        env=os.environ | {"IPYTHONDIR": home, SESSION: "test.ipynb"},
    )
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(WAIT_S)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def messages(client: BlockingKernelClient, msg_id: str) -> Iterator[dict[str, Any]]:
    """What the kernel publishes until the request is done."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=WAIT_S)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return
        yield message
    raise TimeoutError


def test_a_click_is_heard_while_the_cell_blocks_and_the_output_ends_as_html(kernel: BlockingKernelClient) -> None:
    msg_id = kernel.execute(BLOCKING)
    outputs, text, comm_id = [], "", ""
    for message in messages(kernel, msg_id):
        content = message["content"]
        if message["msg_type"] == "error":
            pytest.fail("\n".join(content["traceback"]))
        if message["msg_type"] == "comm_open" and content["data"]["state"].get("_model_name") == "AnyModel":
            comm_id = content["comm_id"]
        if message["msg_type"] in ("display_data", "update_display_data"):
            outputs.append((message["msg_type"], set(content["data"])))
        if message["msg_type"] == "display_data":
            click = {"from": "page", "seq": 1, "action": "stop", "value": None}
            data = {"method": "custom", "content": click}
            kernel.shell_channel.send(kernel.session.msg("comm_msg", {"comm_id": comm_id, "data": data}))
        if message["msg_type"] == "stream":
            text += content["text"]
    assert "True [('run-1', 'stop', None)]" in text
    assert outputs[0] == ("display_data", {WIDGET_MIME, "text/html", "text/plain"})
    assert outputs[-1] == ("update_display_data", {"text/html", "text/plain"})


def run(kernel: BlockingKernelClient, code: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    msg_id = kernel.execute(code)
    said = list(messages(kernel, msg_id))
    return kernel.get_shell_msg(timeout=WAIT_S)["content"], said


def test_a_kernel_without_a_page_makes_no_panel(kernel: BlockingKernelClient) -> None:
    code = (
        "import os; name = os.environ.pop('JPY_SESSION_NAME')\n"
        + STATUS
        + "from depin_nb.jupyter.display import LiveDisplay\n"
        + "live = LiveDisplay(get_ipython(), control=print)\nlive.update(status); live.finish()\nos.environ['JPY_SESSION_NAME'] = name"
    )
    said = list(messages(kernel, kernel.execute(code)))
    shown = [set(m["content"]["data"]) for m in said if "display_data" in m["msg_type"]]
    assert shown == [{"text/html", "text/plain"}] * 2
    assert not [m for m in said if m["msg_type"] in ("comm_open", "error")]


def test_a_usage_error_is_short_and_fails_the_cell(kernel: BlockingKernelClient) -> None:
    while kernel.shell_channel.msg_ready():
        kernel.get_shell_msg(timeout=WAIT_S)
    assert run(kernel, "%load_ext depin_nb")[0]["status"] == "ok"
    reply, said = run(kernel, "%depin up --bugdet $0.10")
    assert reply["status"] == "error"
    assert reply["ename"] == "UsageError"
    shown = next(m["content"]["traceback"] for m in said if m["msg_type"] == "error")
    assert len(shown) == 2
    assert "--bugdet" in shown[0]
    assert "Did you mean --budget?" in shown[1]
    other, said = run(kernel, "1 / 0")
    assert other["ename"] == "ZeroDivisionError"
    assert len(next(m["content"]["traceback"] for m in said if m["msg_type"] == "error")) > 2
    completed = kernel.complete("%depin up lo", 12, reply=True, timeout=WAIT_S)["content"]
    assert completed["matches"] == ["local"]
    assert (completed["cursor_start"], completed["cursor_end"]) == (10, 12)


def test_loading_imports_nothing_heavy() -> None:
    script = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
ip.run_line_magic("load_ext", "depin_nb")
ip.run_line_magic("depin", "")
heavy = ("torch", "distributed", "dask", "anywidget", "ipywidgets", "solders", "numpy")
print(json.dumps([name for name in heavy if name in sys.modules] + ["loaded"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == ["loaded"]
