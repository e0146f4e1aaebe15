"""The engine with weights in lossless codes and with plain ones, in turn: one user's speed.

Weights are coded here whatever the forecast says, so that both are measured; the plan shows both
forecasts. The answers must be equal under strict numerics, because codes are lossless.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

from benchmarks.first_gpu_run.engine_pace import answer_tokens, measure_users
from benchmarks.first_gpu_run.engine_settings import cap_memory, make_spec
from benchmarks.first_gpu_run.lab import CannotRun, Lab
from benchmarks.first_gpu_run.record import Results
from benchmarks.runs import session
from engine.planning import choice, link_probe

PLAIN_BITS = 16.0

Coding = Literal["none", "auto"]
FORMS: dict[str, Coding] = {"plain": "none", "coded": "auto"}


def run(lab: Lab, out: Results) -> None:
    """Measure both forms. Raises `CannotRun` if the weights cannot be coded here."""
    cap_memory(lab)
    for name, coding in FORMS.items():
        lab.check()
        lab.give_back_freed()
        out[name] = _measure(lab, coding)
    if out["coded"]["bits"] >= PLAIN_BITS:
        raise CannotRun("the weights were not coded; the log says why")
    speeds = [out[name]["one user"]["tokens_per_second"] for name in ("coded", "plain")]
    out["coded_over_plain"] = round(speeds[0] / speeds[1], 3)
    out["answers_are_equal"] = out["coded"]["tokens"] == out["plain"]["tokens"]


def _measure(lab: Lab, coding: Coding) -> dict[str, Any]:
    """Return the speed, the answer, the plan, and the bits of a weight that travels."""
    spec = make_spec(lab, "ours", "strict")
    spec = replace(spec, stream=replace(spec.stream, coding=coding))
    began = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(patch.object(choice, "LEAST_GAIN", 0.0))
        stack.enter_context(patch.object(link_probe, "LEAST_CODED_BYTES", 0))
        if lab.is_dry:  # it has no compiled code, and operations of torch code such a small model
            stack.enter_context(patch.object(link_probe, "is_available", return_value=True))
        served = stack.enter_context(session(spec))
        info = served.loaded.info
        return {
            "load_seconds": round(time.perf_counter() - began, 1),
            "plan": info.plan,
            "bits": round(info.link_bits, 3),
            "streamed_bytes": served.streamed_bytes,
            "one user": measure_users(lab, served, 1),
            "tokens": answer_tokens(lab, served, 1),
        }
