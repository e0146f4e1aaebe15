"""Benchmarks on a small published model, SmolLM2-135M-Instruct, which a Python package ships."""
