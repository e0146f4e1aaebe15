"""A server that is broken on purpose while clients use it: `python -m tests.chaos`."""
