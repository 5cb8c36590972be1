"""Loop leasing: find the training loop in a cell, split its body in two halves, lease its iterations, replay their logs.

The one idea of this package (docs/architecture.md): one instrumented body runs twice. On a worker a `Recorder` executes it and logs
every step from device-side values (tensors, modules, optimizers) to plain ones; in the notebook a `Replayer` runs the same body in the
user's own frame, takes those values from the log and executes the plain bookkeeping for real.
"""
