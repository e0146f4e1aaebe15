"""Weights that travel packed: how fast the device expands each form to bfloat16.

A packed unit moves a third or half of the bytes, so its expansion must be much faster than the
link. The forms are those of `benchmarks.expansion`, at the shape of a 7 B layer's largest weight.
"""

from typing import Any

import torch

from benchmarks.expansion import Form, block_forms, group_forms
from benchmarks.first_gpu_run.lab import Lab, gbps
from benchmarks.first_gpu_run.record import Results

SHAPE = (18_944, 3584)


def run(lab: Lab, out: Results) -> None:
    """Measure the expansion of every packed form that the engine reads."""
    rows, columns = lab.choose(SHAPE, (256, 512))
    link = lab.link_bandwidth()
    out["link_gbps"] = gbps(link, 1.0)
    dense = torch.empty(rows, columns, dtype=torch.bfloat16, device=lab.device)
    forms = list((group_forms(dense) | block_forms(dense)).items())
    for name, form in lab.choose(forms, forms[:2]):
        lab.check()
        out[name] = _measure(lab, form, dense.nbytes, link)


def _measure(lab: Lab, form: Form, nbytes: int, link: float) -> dict[str, Any]:
    try:
        seconds = lab.wall_seconds(form.expand, times=3)
        peak = lab.peak_bytes(form.expand)
    except RuntimeError as error:  # one form must not take the figures of the others
        return {"error": str(error)[:300]}
    return {
        "gbps": gbps(nbytes, seconds),
        "of_link": round(nbytes / seconds / link, 2),
        "peak_over_dense": None if peak is None else round(peak / nbytes, 2),
    }
