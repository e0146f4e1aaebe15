"""Drafting methods for benchmarks only, found where this folder joins the path
of `engine.drafting.methods`."""
