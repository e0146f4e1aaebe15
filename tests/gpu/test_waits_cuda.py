"""Tests that the host waits for the device in a few places only, by torch's own check.

tests/engine/order/test_waits.py counts the same on a pretended device.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.drafting.model.draft_model import DraftModel
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec
from tests.engine.models import SMALL, checkpoint, load, prompt, request, run
from tests.gpu.waiting import no_waiting, waiting_allowed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU: dict[str, Any] = {"device": "cuda:0", "memory": MemorySpec(device=1 << 30)}


def asked() -> list[Any]:
    return [
        request("greedy", prompt(40, 1), max_tokens=24),
        request("sampled", prompt(9, 2), temperature=1.0, seed=1, n=2, max_tokens=24),
        request("nucleus", prompt(70, 3), temperature=0.8, top_p=0.9, seed=2, max_tokens=24),
        request("biased", prompt(7, 4), logit_bias=((3, 1.0),), top_k=20, seed=3, max_tokens=24),
    ]


@pytest.mark.parametrize("has_graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("method", ["subspec", "specexec", "ngram"])
def test_a_step_waits_once_and_a_pass_once_for_each_tree(
    monkeypatch: pytest.MonkeyPatch, method: str, has_graphs: bool
) -> None:
    folder = checkpoint("llama", torch.bfloat16)
    source = str(folder) if method == "specexec" else None
    engine = load(folder, DraftSpec(method, source=source, **(SMALL if source else {})), **GPU)
    model = engine._drafting._model
    if model is not None and not has_graphs:
        model.graphs = None
    run(engine, asked())  # libraries initialize themselves, and graphs are captured
    reads: Counter[str] = Counter()
    own_tolist, own_step, own_run = Tensor.tolist, DraftModel.step, Engine._run

    def tolist(tensor: Tensor) -> Any:
        if not tensor.is_cuda:
            return own_tolist(tensor)
        reads["now"] += 1
        with waiting_allowed():
            return own_tolist(tensor)

    def step(draft: DraftModel, *arguments: Any) -> int:
        before = reads["now"]
        rows = own_step(draft, *arguments)
        reads["steps"] += 1
        assert reads["now"] - before <= 1
        return rows

    def run_pass(own: Engine, turns: Any, events: Any) -> None:
        before, steps = reads["now"], reads["steps"]
        with no_waiting():
            own_run(own, turns, events)
        reads["passes"] += 1
        in_steps = reads["steps"] - steps
        forks = 1  # a second choice takes its first token in the pass of the prompt
        assert reads["now"] - before <= in_steps + len(turns) + forks

    monkeypatch.setattr(Tensor, "tolist", tolist)
    monkeypatch.setattr(DraftModel, "step", step)
    monkeypatch.setattr(Engine, "_run", run_pass)
    run(engine, asked())
    assert reads["passes"] > 5
    assert (reads["steps"] > 5) == (method != "ngram")
