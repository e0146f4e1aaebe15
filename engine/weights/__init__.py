"""Tensors at rest: finding, reading, naming and laying out a checkpoint's weights."""
