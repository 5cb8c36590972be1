"""What instrumented code asks, and the two that answer: the recorder on a worker, the replayer in the notebook."""
