"""Drafting methods for benchmarks, used by adding this folder to the path
of the package `engine.drafting.methods`."""
