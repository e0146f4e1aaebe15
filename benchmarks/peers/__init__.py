"""Engines that `benchmarks.offload` runs beside ours, each a process that prints JSON.

    PYTHON -m benchmarks.peers.<runner> JOB.json

Modules here import nothing of the engine (except `understudy`), so that the peers' own environment
is enough for them.
"""
