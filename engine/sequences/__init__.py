"""Requests in flight: their sequences, and the scheduler that picks who runs."""
