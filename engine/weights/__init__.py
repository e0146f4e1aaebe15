"""Checkpoints at rest: finding, reading and naming their tensors, and the layout of units."""
