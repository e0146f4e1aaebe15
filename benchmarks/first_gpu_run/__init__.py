"""Everything that a GPU has to tell about this project, measured by one command in nine minutes.

`python -m benchmarks.first_gpu_run` runs the stages of `stages.py`, each in a process of its own
with its own time limit. A stage writes what it measures into its own JSON file while it runs, so a
stage that hangs or crashes loses no figures. `summary.md` compares the figures with their bars.
docs/gpu.md says how to run it, and which decision each figure settles.
"""
