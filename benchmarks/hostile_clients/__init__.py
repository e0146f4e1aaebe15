"""Measure what hostile clients cost a server: one connection at a time, or many at once."""
