"""Weights on their way to the device: a ring of slots that links fill from RAM or disk."""
