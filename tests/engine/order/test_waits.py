"""The host waits for a CUDA device in a few places only, on a pretended device.

tests/gpu/test_waits_cuda.py holds the same on a real one.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.drafting.model.draft_model import DraftModel
from engine.runtime.engine import Engine
from engine.spec import DraftSpec
from tests.engine.models import SMALL, checkpoint, close_all, load, prompt, request, run
from tests.engine.order.pretended_cuda import PretendedCuda
from tests.engine.order.waits import install
from tests.variations import variations

# Where the host reads results, by the place that reads: once in a draft step, and once for each
# tree that a pass verifies.
STEP = {"children.add: tolist"}
PASS = {"choices.choose_tree: tolist"}
ON_THE_HOST = {"recycling.<genexpr>: tolist"}  # a table that the host keeps


def asked() -> list[Any]:
    return [
        request("greedy", prompt(40, 1), max_tokens=24),
        request("sampled", prompt(9, 2), temperature=1.0, seed=1, n=2, max_tokens=24),
        request("nucleus", prompt(70, 3), temperature=0.8, top_p=0.9, seed=2, max_tokens=24),
        request("biased", prompt(7, 4), logit_bias=((3, 1.0),), top_k=20, seed=3, max_tokens=24),
    ]


@pytest.mark.parametrize("method", variations(["subspec", "specexec", "ngram"], quick=["subspec"]))
def test_the_host_waits_once_in_a_draft_step_and_once_for_each_tree(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    waits = install(monkeypatch, cuda)
    folder = checkpoint("llama")
    source = str(folder) if method == "specexec" else None
    draft = DraftSpec(method, source=source, **(SMALL if method != "ngram" else {}))
    steps: list[Counter[str]] = []
    passes: list[tuple[int, Counter[str]]] = []
    own_step, own_run = DraftModel.step, Engine._run

    def step(model: DraftModel, *arguments: Any) -> int:
        with waits.counting() as counted:
            rows = own_step(model, *arguments)
        steps.append(counted)
        return rows

    def run_pass(engine: Engine, turns: Any, events: Any) -> None:
        with waits.counting() as counted:
            own_run(engine, turns, events)
        passes.append((sum(turn.max_tree_rows > 0 for turn in turns), counted))

    with cuda.recording():
        engine = load(folder, draft)
        monkeypatch.setattr(DraftModel, "step", step)
        monkeypatch.setattr(Engine, "_run", run_pass)
        run(engine, asked())
        close_all()
    assert all(counted.keys() <= STEP and counted.total() <= 1 for counted in steps), steps
    forks = 1  # a second choice takes its first token in the pass of the prompt
    for trees, counted in passes:
        assert counted.keys() <= STEP | PASS | ON_THE_HOST, counted
        assert sum(counted[place] for place in PASS) <= trees + forks
    assert (len(steps) > 5) == (method != "ngram")
    assert len(passes) > 5


def read_number(values: Tensor) -> None:
    if values.sum() > 0:
        values.add_(1)


@pytest.mark.parametrize(
    ("work", "what"),
    [
        (lambda values: values.sum().item(), "item"),
        (read_number, "is_nonzero"),
        (lambda values: values.nonzero(), "nonzero"),
        (lambda values: values[values > 1], "index by a mask"),
        (lambda values: values[[0, 2]], "values of a list"),
        (lambda values: values.tolist(), "tolist"),
        (lambda values: torch.tensor([1], device="cpu"), "values with a device"),
        (lambda values: values[torch.arange(2)], ""),
        (lambda values: values.topk(2).values, ""),
    ],
)
def test_each_kind_of_wait_is_counted(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, work: Any, what: str
) -> None:
    waits = install(monkeypatch, cuda)
    monkeypatch.setattr("tests.engine.order.waits._place", lambda: "here")
    with cuda.recording(), torch.inference_mode(), waits.counting() as counted:
        work(torch.zeros(3).add_(1))
    assert {own.removeprefix("here: ") for own in counted} <= {what, "_local_scalar_dense"}
    assert bool(counted) == bool(what)
