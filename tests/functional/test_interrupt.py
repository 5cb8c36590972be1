"""Item 5 in a real ipykernel: the Stop button's interrupt ends the cell, the cells queued behind it don't run, and no worker stays busy."""

import json
import os
import time

import pytest
from gates import CELL, Gated
from jupyter_client import KernelManager
from running import PATIENCE_S, eventually, merged_by_pass, row_of

from depin_nb import wiring

CHECK = """
import json
from depin_nb import wiring
import depin_nb
run_id = wiring.runs()[0]["run_id"]
weights = depin_nb.attach(run_id).state_dict()
print(json.dumps({
    "run": run_id,
    "same": all(torch.equal(weights[name], value) for name, value in model.state_dict().items()),
    "alias": alias is model,
    "lines": len(lines),
    "left": [n for n in globals() if n.startswith("__depin")],
}))
"""


@pytest.fixture(scope="module")
def kernel(home):
    manager = KernelManager()
    manager.start_kernel(
        extra_arguments=["--HistoryManager.enabled=False"],
        env=os.environ | {"IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1"},
    )
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(PATIENCE_S)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def reply(client, msg_id):
    """The reply to one request, and what it wrote."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        message = client.get_shell_msg(timeout=PATIENCE_S)
        if message["parent_header"].get("msg_id") == msg_id:
            return message["content"]
    raise TimeoutError


def text(client, msg_id):
    said = ""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=PATIENCE_S)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        if message["msg_type"] == "stream":
            said += message["content"]["text"]
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return said
    raise TimeoutError


def test_the_stop_button(kernel, tmp_path):
    manager, client = kernel
    gate = Gated(tmp_path)
    for code in ("%load_ext depin_nb", "%depin up local --workers 2", gate.setup):
        content = reply(client, client.execute(code))
        assert content["status"] == "ok", content
    gate.close()
    try:
        running = client.execute("%%depin train --strategy local --inner-steps 3\n" + CELL)
        queued = client.execute("lines.append('queued')")
        gate.held_by()
        manager.interrupt_kernel()
        content = reply(client, running)
        # the cell has ended although its worker still computes
        assert (content["status"], content["ename"]) == ("error", "KeyboardInterrupt")
        assert (tmp_path / "hold").exists()
        assert reply(client, queued)["status"] == "aborted"
    finally:
        gate.open()
    checked = client.execute(CHECK)
    said = text(client, checked)
    assert reply(client, checked)["status"] == "ok"
    found = json.loads(said.splitlines()[-1])
    assert found["same"]
    assert found["alias"]
    assert found["left"] == []
    row = row_of(found["run"])
    assert (row.state, row.settled) == ("interrupted", True)
    (merged,) = merged_by_pass(found["run"])
    assert merged == list(range(len(merged)))
    assert 0 < found["lines"] <= len(merged) <= gate.at
    session = wiring.current()
    eventually(lambda: [d.state for d in session.workers()] == ["idle", "idle"], "no worker is busy")
    # and the cell runs again to its end
    again = client.execute("lines.clear()")
    assert reply(client, again)["status"] == "ok"
    content = reply(client, client.execute("%%depin train --strategy local\n" + CELL))
    assert content["status"] == "ok", content
