"""What leaves the notebook: one program of all that the worker half reads, its tensors by content, the state that training changes."""
