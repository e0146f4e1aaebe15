"""Idle KV pages and states on disk: files that are named by their tokens, and their bounds."""
