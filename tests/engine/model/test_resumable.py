"""Tests of interrupted draft steps: several pieces give the same result as one."""

from itertools import count

import pytest
import torch

from engine.drafting.calibration import Calibration
from engine.drafting.drafter import Drafting
from engine.drafting.growth import Growth
from engine.model.resumable import OutOfTime, ResumableForward
from engine.runtime.engine import Engine
from engine.sequences.sequence import TokenSequence
from tests.engine.models import SUBSPEC, checkpoint, draft_model, load, prompt, request


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "count[int]":
    """Replace the clock by one that advances a second per call, so that each layer takes one."""
    ticks = count()
    monkeypatch.setattr("engine.model.resumable.time.perf_counter", lambda: float(next(ticks)))
    return ticks


def fail_to_run() -> torch.Tensor:
    pytest.fail("the layer has run already, or has no time to run")


def test_a_layer_runs_only_if_it_ends_in_time(clock: "count[int]") -> None:
    forward, hidden = ResumableForward(), torch.zeros(1, 1, 4)
    assert forward.run(lambda: hidden) is hidden
    assert forward.num_run == 1 and forward.layer_seconds == 1.0
    forward.resume(deadline=next(clock) + 1.5)  # the next call of the clock returns a second more
    assert forward.run(fail_to_run) is hidden
    with pytest.raises(OutOfTime):
        forward.run(fail_to_run)


def engine_after_prompt() -> tuple[Engine, TokenSequence]:
    """Return an engine that has run a prompt, and the sequence, which is still decoding."""
    engine = load(checkpoint("llama"), SUBSPEC)
    engine.add(request("r", prompt(30), max_tokens=40))
    engine.step()
    return engine, engine._scheduler.running[0]


def children(growth: Growth) -> list[tuple[int, float]]:
    return [(node.token, node.score) for node in growth.root.children.values()]


@torch.inference_mode()
def test_a_draft_step_in_pieces_equals_the_step_in_one_piece(clock: "count[int]") -> None:
    grown = []
    for in_pieces in (False, True):
        engine, sequence = engine_after_prompt()
        model, growth = draft_model(engine), Growth(sequence, 24)
        chosen = [(growth, growth.pop(1, 4))]
        if not in_pieces:
            assert model.step(chosen, Calibration()) == 1
        else:
            model.begin_step(chosen)
            pieces = 0
            while model.unfinished is not None:
                # Enough for one more layer: the clock is read here and twice for the layer.
                assert model.continue_step(next(clock) + 2.5, Calibration())
                pieces += 1
                assert pieces <= 4
            assert pieces > 1, "three layers, one in each piece"
        grown.append(children(growth))
    assert grown[0] == grown[1] and grown[0]


def test_a_dropped_step_puts_its_nodes_back_on_the_frontier(clock: "count[int]") -> None:
    engine, sequence = engine_after_prompt()
    model, growth = draft_model(engine), Growth(sequence, 24)
    model.begin_step([(growth, growth.pop(1, 4))])
    assert len(growth.ran) == 1
    model.drop_step()
    assert model.unfinished is None and not growth.ran
    assert growth.pop(1, 4) == [growth.root]


def test_releasing_a_sequence_drops_its_unfinished_step(clock: "count[int]") -> None:
    engine, sequence = engine_after_prompt()
    drafting: Drafting = engine._drafting
    drafting._get_growth(sequence)
    assert not drafting.draft_ahead(0.0), "there is no time for a layer"
    model = draft_model(engine)
    model.begin_step([(drafting._growths[sequence], drafting._growths[sequence].pop(1, 4))])
    drafting.release(sequence)
    assert model.unfinished is None and not drafting._growths
