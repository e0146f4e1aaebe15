"""Whole engine runs on a pretended CUDA device: no two accesses to memory are unordered.

`UNDERSTUDY_TEST_ORDER_SEEDS=FIRST:LAST` runs more random traffic than the usual one of each draft.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

import engine.planning.blueprint
from engine.drafting.model.draft_cache import SharedCache
from engine.drafting.model.draft_model import DraftModel
from engine.drafting.tree import Bounds
from engine.kv.host_tier import HostTier
from engine.model.resumable import ResumableForward
from engine.planning import choice, link_probe
from engine.recurrent.states import SequenceState
from engine.sequences.scheduler import Scheduler
from engine.spec import StreamSpec
from engine.streaming.cuda_streams import CudaSideStream
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    checkpoint,
    close_all,
    draft_ahead,
    exact,
    load,
    prompt,
    request,
    run,
)
from tests.engine.order.pretended_cuda import PretendedCuda, install
from tests.engine.traffic import Scene, Traffic, open_engine, requests

SCENE = Scene(
    family="llama",
    drafter="subspec",
    num_pages=8,
    max_sequences=8,
    num_requests=4,
    prefix_cache=True,
    abort=0.1,
    fail=0.02,
    host_pages=4,
    tuned=False,
    ahead=0.6,
    bounds=Bounds(depth=3, width=3, branch=3, budget=12),
)
MOVING: dict[str, Any] = {"resident": 2, "move": 0.6}  # so weights move between passes
CODED: dict[str, Any] = {"dtype": torch.bfloat16}  # so weights travel in a lossless code
# Changes to the scene, the seed, and what happens there. The look-ups ngram, recycling and
# prediction add to the trees of all of them.
SCENES: tuple[tuple[dict[str, Any], int, set[str]], ...] = (
    ({"drafter": "subspec"}, 1, {"_pause", "save", "load", "ahead", "replay"}),
    ({"drafter": "merged", "max_sequences": 2}, 6, {"left", "ahead", "replay"}),
    ({"drafter": "specexec", "family": "mistral_window"}, 1, {"save", "left", "ahead", "replay"}),
    ({"drafter": "ngram"}, 1, {"_pause", "save", "load"}),
    # Layers in parts.
    ({"drafter": "subspec", "part_bytes": 1}, 1, {"_pause", "save", "ahead", "replay"}),
    # Coded weights: by copies, and by themselves.
    ({"drafter": "subspec", "part_bytes": 1, **CODED}, 1, {"ahead", "replay", "decoded"}),
    ({"drafter": "merged", "max_sequences": 2, **CODED}, 6, {"ahead", "replay", "decoded"}),
    # Weights that move, and with them layers that the draft shares.
    ({"drafter": "subspec", **MOVING}, 1, {"ahead", "replay", "moves"}),
)
LONG_SCENES: tuple[tuple[dict[str, Any], int, set[str]], ...] = (
    # No graphs: steps are run in pieces.
    ({"drafter": "subspec", "family": "phi3_longrope", "max_sequences": 1}, 6, {"_pause", "ahead"}),
    ({"drafter": "subspec", "family": "qwen3_5_text"}, 1, {"ahead"}),
    ({"drafter": "ngram", **CODED}, 1, {"_pause", "decoded"}),
    ({"drafter": "guesses", **CODED}, 1, {"decoded"}),
    ({"drafter": "merged", "max_sequences": 2, "part_bytes": 1}, 0, {"left", "ahead", "replay"}),
    ({"drafter": "subspec", **MOVING, **CODED}, 1, {"ahead", "replay", "decoded", "moves"}),
    ({"drafter": "merged", "part_bytes": 1, **MOVING}, 3, {"moves"}),
    ({"drafter": "subspec", "family": "qwen3_5_text", **MOVING}, 1, {"ahead", "moves"}),
    ({"drafter": "subspec", **CODED}, 1, {"_pause", "ahead", "replay", "decoded"}),
    ({"drafter": "specexec", "family": "mistral_window", **CODED}, 7, {"ahead", "decoded"}),
    ({"drafter": "subspec", "family": "qwen3_5_text", **CODED}, 1, {"ahead", "decoded"}),
)
if more := os.environ.get("UNDERSTUDY_TEST_ORDER_SEEDS"):
    SCENES += tuple(
        (changes, seed, set())
        for changes, *_ in SCENES
        for seed in range(*map(int, more.split(":")))
    )


@pytest.mark.parametrize(
    ("changes", "seed", "expected"),
    [*SCENES, *(pytest.param(*scene, marks=pytest.mark.long) for scene in LONG_SCENES)],
    ids=["-".join(map(str, own.values())) or "plain" for own, *_ in (*SCENES, *LONG_SCENES)],
)
def test_no_traffic_has_unordered_accesses(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], seed: int, expected: set[str]
) -> None:
    """Random requests with shared prefixes, aborts, failures, pauses, and drafting ahead."""
    part_bytes = changes.get("part_bytes", engine.planning.blueprint.PART_BYTES)
    chance = random.Random(seed)
    what = replace(SCENE, **{own: changes[own] for own in changes.keys() - {"part_bytes"}})
    monkeypatch.setattr(link_probe, "LEAST_CODED_BYTES", 0)
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)  # so weights are coded that gain nothing by it
    own = StreamSpec(tier="ram", slots=2, coding="none")
    folder = checkpoint(what.family, what.dtype)
    plain = load(folder, PLAIN, prefix_cache=False, stream=own)
    asked, want = requests(chance, what, plain)
    cuda = PretendedCuda()
    install(monkeypatch, cuda)
    run_one_layer_at_a_time(monkeypatch)
    monkeypatch.setattr(engine.planning.blueprint, "PART_BYTES", part_bytes)
    happened: Counter[str] = Counter()
    for owner, name in ((Scheduler, "_pause"), (HostTier, "load"), (HostTier, "save")):
        count_calls(monkeypatch, owner, name, happened)
    with cuda.recording():
        traffic = Traffic(open_engine(what, want, chance), asked, want, chance, what)
        traffic.run()
        close_all()
    cuda.checker.check()
    happened |= Counter(ahead=traffic.ahead, left=len(traffic.left), replay=cuda.num_replayed)
    happened["decoded"], happened["moves"] = cuda.num_decoded, traffic.moves
    assert {name for name in expected if not happened[name]} == set()
    assert cuda.checker.num_accesses > 1000


def count_calls(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, happened: Counter[str]
) -> None:
    own = getattr(owner, name)

    def counted(*arguments: Any) -> Any:
        happened[name] += 1
        return own(*arguments)

    monkeypatch.setattr(owner, name, counted)


def test_graphs_are_replayed_with_the_answers_of_plain_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = checkpoint("llama")
    asked = [
        request("greedy", prompt(70, 1)),
        request("sampled", prompt(9, 2), temperature=1.0, seed=1, n=2),
    ]
    want = exact(run(load(folder, PLAIN), asked))
    cuda = PretendedCuda()
    install(monkeypatch, cuda)
    with cuda.recording():
        made = load(folder, SUBSPEC)
        captured = cuda.num_captured
        draft_ahead(made, steps=1)
        assert exact(run(made, asked)) == want
        close_all()
    cuda.checker.check()
    assert cuda.num_captured == captured > 1, "a pass captured a graph"
    assert cuda.num_replayed > 10


def begin_on_the_compute_stream(cuda: PretendedCuda, patch: pytest.MonkeyPatch) -> None:
    begin = DraftModel.begin_step

    def begin_step(model: DraftModel, chosen: Any) -> None:
        assert cuda.compute is not None
        with cuda.stream(cuda.compute):
            begin(model, chosen)

    patch.setattr(DraftModel, "begin_step", begin_step)


def do_not_wait_for_the_draft(cuda: PretendedCuda, patch: pytest.MonkeyPatch) -> None:
    def join(stream: CudaSideStream) -> None:
        stream._is_in_pass = False

    patch.setattr(CudaSideStream, "join", join)


def read_states_that_a_pass_changes(_: PretendedCuda, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedCache, "catch_up", lambda *_: None)
    patch.setattr(SequenceState, "is_caught_up", lambda *_: True)


@pytest.mark.parametrize(
    ("plant", "family", "named"),
    [
        (begin_on_the_compute_stream, "llama", r"on stream \d+ \(beside\).*begin_step"),
        (do_not_wait_for_the_draft, "phi3_longrope", "finish_ahead|page_pool"),
        (read_states_that_a_pass_changes, "qwen3_5_text", r"recurrent/branch.py"),
    ],
)
def test_a_planted_race_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Any, family: str, named: str
) -> None:
    cuda = PretendedCuda()
    install(monkeypatch, cuda)
    run_one_layer_at_a_time(monkeypatch)
    plant(cuda, monkeypatch)
    with cuda.recording():
        made = load(checkpoint(family), SUBSPEC)
        draft_ahead(made, steps=1)
        run(made, [request("a", prompt(40, 1), max_tokens=8), request("b", prompt(9, 2))])
        close_all()
    with pytest.raises(AssertionError, match=re.compile(named, re.DOTALL)):
        cuda.checker.check()


def run_one_layer_at_a_time(patch: pytest.MonkeyPatch) -> None:
    """Interrupt draft steps that run in pieces after each layer."""
    own_run, own_resume = ResumableForward.run, ResumableForward.resume

    def run_layer(state: ResumableForward, layer: Callable[[], Tensor]) -> Tensor:
        hidden = own_run(state, layer)
        state.layer_seconds = inf
        return hidden

    def resume(state: ResumableForward, deadline: float) -> None:
        state.layer_seconds = 0.0
        own_resume(state, deadline)

    patch.setattr(ResumableForward, "run", run_layer)
    patch.setattr(ResumableForward, "resume", resume)
