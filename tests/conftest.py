"""For all tests."""

import os
import signal
import threading

import psutil
import pytest
from hypothesis import HealthCheck, settings

from depin_nb import wiring

PATIENCE_S = 200.0  # two cores that others use too

# nothing here asserts times: a loaded machine is slow
settings.register_profile("depin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("depin")

# A shell starts background commands with SIGINT ignored, and Python then keeps it so: the tests of interrupts need it.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _processes_of(folder):
    """Every process of this user that works on that state folder, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("DEPIN_HOME") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="session")
def nothing_left():
    """Stops the hub of a state folder; no process of it may be left."""

    def check(folder):
        wiring.down()
        _, alive = psutil.wait_procs(_processes_of(folder), timeout=PATIENCE_S)
        assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []

    return check
