"""One body, instrumented once: the notebook half in the user's own frame, the worker half on a device, callees in both."""
