"""A state folder of its own for tests with a real hub; nothing of it may be left."""

import os

import psutil
import pytest

from depin_nb import wiring

PATIENCE_S = 60.0


def processes_of(folder):
    """Every process of this user that works on that state folder, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("DEPIN_HOME") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DEPIN_HOME", str(folder))
    yield folder
    wiring.down()
    _, alive = psutil.wait_procs(processes_of(folder), timeout=PATIENCE_S)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
