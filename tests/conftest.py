"""For all tests."""

import signal
import threading

from hypothesis import HealthCheck, settings

# nothing here asserts times: a loaded machine is slow
settings.register_profile("depin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("depin")

# A shell starts background commands with SIGINT ignored, and Python then keeps it so: the tests of interrupts need it.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
