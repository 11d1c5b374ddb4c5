"""A run: its directory, its loop, its plan and its results."""
