"""Runners of `benchmarks.offload`: our engine and others, each a process that prints JSON.

    PYTHON -m benchmarks.peers.<runner> JOB.json

The runners of other engines ("peers") import nothing of our engine, so that they need only the
environment of the peers.
"""
