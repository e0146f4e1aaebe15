"""Draft models: their forward steps, their KV caches and their 4-bit weights."""
