"""For all tests."""

import signal
import threading

# A shell starts background commands with SIGINT ignored, and Python then keeps it so: the tests of interrupts need it.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
