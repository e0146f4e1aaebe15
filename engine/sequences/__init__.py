"""Requests in progress: their sequences, and the scheduler that selects which of them run."""
