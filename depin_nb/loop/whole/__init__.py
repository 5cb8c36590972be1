"""A whole cell on one worker, not split: how it gets there, what it says meanwhile, and how its names come back."""
