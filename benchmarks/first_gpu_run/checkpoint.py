"""The model of the engine's stages: the demo's target grown into 7 B, cut to a few layers.

It is grown so that drafts are accepted like those of a trained model (`benchmarks.grow`). The
vocabulary is cut like the layers, so that the head keeps its share of the weights: a whole head
would be a third of what travels, and of what a draft step reads.
"""

import time
from dataclasses import replace

from benchmarks.first_gpu_run.lab import Lab
from benchmarks.first_gpu_run.record import Results
from benchmarks.grow import grow
from benchmarks.random_model import Checkpoint, Shape
from benchmarks.runs import DEMO
from engine.weights.layout import round_up

VOCABULARY_STEP = 64

SEVEN_B = Shape(  # Qwen2.5-7B
    layers=28,
    hidden=3584,
    intermediate=18_944,
    heads=28,
    kv_heads=4,
    vocabulary=152_064,
    context=8192,
    family="qwen2",
)
SMALL = Shape(
    layers=6, hidden=320, intermediate=704, heads=5, kv_heads=5, head_dim=64, vocabulary=4160
)


def run(lab: Lab, out: Results) -> None:
    """Write the checkpoint that the engine's stages load."""
    began = time.perf_counter()
    made = model_of(lab)
    out["gigabytes"] = round(made.nbytes / 1e9, 3)
    out["seconds"] = round(time.perf_counter() - began, 1)


def model_of(lab: Lab, *, small: bool = False) -> Checkpoint:
    """Return the 7 B model or the small one, which the first call writes.

    In a dry run the former is as small. Two processes must not write a model at the same time.
    """
    if small:
        return grow(DEMO / "target", lab.kept / "small", SMALL)
    if lab.is_dry:
        return grow(DEMO / "target", lab.kept / "dry", SMALL)
    vocabulary = round_up(SEVEN_B.vocabulary * lab.layers // SEVEN_B.layers, VOCABULARY_STEP)
    shape = replace(SEVEN_B, layers=lab.layers, vocabulary=vocabulary)
    return grow(DEMO / "target", lab.kept / f"qwen2.5-7b-{lab.layers}-layers", shape)
