"""One hub for each module, in a state folder of its own; nothing of it may be left when the module is done."""

import os
import sys
from pathlib import Path

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "unit" / "loop"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from depin_nb import wiring  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory, nothing_left):
    """A state folder for this module; at the end its hub is stopped, and no process of it may be left."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("DEPIN_HOME")
    os.environ["DEPIN_HOME"] = str(folder)
    try:
        yield folder
        nothing_left(folder)
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
