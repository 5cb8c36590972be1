"""Finds the loops that train, and brings them into the one form that is leased. Nothing of the user's is called."""
