"""Drafting methods for benchmarks only, found where this folder joins `engine.drafters`' path."""
