"""One hub for each module, in a state folder of its own; nothing of it may be left when the module is done."""

import os
import sys
from pathlib import Path

import psutil
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "unit" / "loop"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from running import PATIENCE_S  # noqa: E402

from depin_nb import wiring  # noqa: E402


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


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A state folder for this module; at the end its hub is stopped, and no process of it may be left."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("DEPIN_HOME")
    os.environ["DEPIN_HOME"] = str(folder)
    try:
        yield folder
        wiring.down()
        _, alive = psutil.wait_procs(processes_of(folder), timeout=PATIENCE_S)
        assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        wiring.down()
        if before is None:
            del os.environ["DEPIN_HOME"]
        else:
            os.environ["DEPIN_HOME"] = before


@pytest.fixture
def session(home):
    """Two local workers, the same ones for all tests that leave them alive."""
    return wiring.connect("local", workers=2)


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A shell as IPython makes it, with the extension loaded."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.ipython_dir = str(tmp_path_factory.mktemp("ipython"))
    shell = InteractiveShell.instance(config=config)
    assert shell.run_cell("%load_ext depin_nb").success
    yield shell
    InteractiveShell.clear_instance()
