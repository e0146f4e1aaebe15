"""Drafts that are models: their forward steps, KV caches and 4-bit weights."""
