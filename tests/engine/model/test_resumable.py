"""A draft step that is left at layer borders gives what it gives in one go."""

from itertools import count

import pytest
import torch

from engine.drafting.calibration import Calibration
from engine.drafting.drafter import Drafting
from engine.drafting.growth import Growth
from engine.model.resumable import OutOfTime, ResumableForward
from engine.runtime.engine import Engine
from engine.sequences.sequence import Sequence
from tests.engine.models import SUBSPEC, checkpoint, draft_model, load, prompt, request


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "count[int]":
    """Every look at the clock takes a second, so a layer takes one."""
    ticks = count()
    monkeypatch.setattr("engine.model.resumable.time.perf_counter", lambda: float(next(ticks)))
    return ticks


def not_again() -> torch.Tensor:
    pytest.fail("the layer has run, or has no time to run")


def test_a_layer_runs_only_if_it_ends_in_time(clock: "count[int]") -> None:
    forward, hidden = ResumableForward(), torch.zeros(1, 1, 4)
    assert forward.run(lambda: hidden) is hidden
    assert forward.num_run == 1 and forward.layer_seconds == 1.0
    forward.go_on(until=next(clock) + 1.5)  # the next look comes a second later
    assert forward.run(not_again) is hidden
    with pytest.raises(OutOfTime):
        forward.run(not_again)


def rooted() -> tuple[Engine, Sequence]:
    """An engine that has answered a prompt, and the sequence that goes on."""
    made = load(checkpoint("llama"), SUBSPEC)
    made.add(request("r", prompt(30), max_tokens=40))
    made.step()
    return made, made._scheduler.running[0]


def children(growth: Growth) -> list[tuple[int, float]]:
    return [(node.token, node.score) for node in growth.root.children.values()]


@torch.inference_mode()
def test_a_step_in_stretches_is_the_step_in_one_go(clock: "count[int]") -> None:
    grown = []
    for in_stretches in (False, True):
        made, sequence = rooted()
        model, growth = draft_model(made), Growth(sequence, 24)
        chosen = [(growth, growth.pop(1, 4))]
        if not in_stretches:
            assert model.step(chosen, Calibration()) == 1
        else:
            model.begin_step(chosen)
            stretches = 0
            while model.unfinished is not None:
                # Time for one layer more: this look, the layer's two, and its own second.
                assert model.continue_step(next(clock) + 2.5, Calibration())
                stretches += 1
                assert stretches <= 4
            assert stretches > 1, "three layers at one a stretch"
        grown.append(children(growth))
    assert grown[0] == grown[1] and grown[0]


def test_a_step_given_up_leaves_its_nodes_to_be_run_later(clock: "count[int]") -> None:
    made, sequence = rooted()
    model, growth = draft_model(made), Growth(sequence, 24)
    model.begin_step([(growth, growth.pop(1, 4))])
    assert len(growth.ran) == 1
    model.drop_step()
    assert model.unfinished is None and not growth.ran
    assert growth.pop(1, 4) == [growth.root]


def test_a_sequence_that_leaves_takes_its_step_under_way_with_it(clock: "count[int]") -> None:
    made, sequence = rooted()
    drafting: Drafting = made._drafting
    drafting._get_growth(sequence)
    assert not drafting.draft_ahead(0.0), "no layer was timed to fit"
    model = draft_model(made)
    model.begin_step([(drafting._growths[sequence], drafting._growths[sequence].pop(1, 4))])
    drafting.release(sequence)
    assert model.unfinished is None and not drafting._growths
