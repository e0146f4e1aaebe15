"""Tests of the target's choices: choosing several rows together gives the same tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

import engine.runtime.choices
import engine.runtime.verify
from engine.runtime.choices import Logits, choose_likely_rows, choose_tree
from engine.sampling.choose import choose
from engine.spec import TILE, DraftSpec
from tests.engine.models import SMALL, checkpoint, exact, load, prompt, request, run
from tests.engine.sequence_makers import make_sequence
from tests.variations import variations

ROW_BY_ROW: tuple[dict[str, Any], ...] = (
    {"logprobs": 2},
    {"repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "temperature": 1.0, "seed": 7},
)
AT_ONCE: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_p": 0.9, "seed": 1},
    {"temperature": 1.2, "top_k": 20, "seed": 2, "n": 3},
    {"temperature": 1.0, "min_p": 0.05, "seed": 3},
    {"min_tokens": 15, "stop_token_ids": tuple(range(3, 60)), "temperature": 1.5, "seed": 5},
    {"logit_bias": ((7, 3.0), (9, -5.0)), "temperature": 1.0, "seed": 4},
)


def asked(kinds: tuple[dict[str, Any], ...]) -> list[Any]:
    return [request(f"r{i}", prompt(20 + i, i), **kind) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("method", ["specexec", "subspec"])
def test_answers_are_the_same_for_whole_trees_and_single_rows(method: str) -> None:
    folder = checkpoint("llama")
    source = str(folder) if method == "specexec" else None
    draft = DraftSpec(method, source=source, **SMALL)
    everything = asked(AT_ONCE + ROW_BY_ROW)
    one_by_one = load(folder, draft)
    assert not one_by_one._at_once
    at_once = load(folder, draft)
    at_once._at_once = True
    want, found = run(one_by_one, everything), run(at_once, everything)
    assert exact(found) == exact(want)
    assert any(a.stats is not None and a.stats.accepted > 5 for a in found.values())


@pytest.mark.parametrize(
    ("ahead", "chance"),
    variations([(1, 0.5), (3, 0.5), (1000, 0.5), (1000, 1e-9)], quick=[(3, 0.5), (1000, 1e-9)]),
)
def test_answers_do_not_depend_on_how_many_rows_are_chosen_together(
    ahead: int, chance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, everything = checkpoint("llama"), asked(AT_ONCE + ROW_BY_ROW)
    want = run(load(folder, DraftSpec("none")), everything)
    monkeypatch.setattr(engine.runtime.choices, "MAX_LIKELY_ROWS", ahead)
    monkeypatch.setattr(engine.runtime.choices, "MIN_LIKELIHOOD", chance)
    found = run(load(folder, DraftSpec("subspec", **SMALL)), everything)
    assert exact(found) == exact(want)


def test_rows_whose_logits_depend_on_the_path_are_chosen_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def count(*arguments: Any, **named: Any) -> dict[int, int]:
        nonlocal calls
        calls += 1
        return choose_likely_rows(*arguments, **named)

    monkeypatch.setattr(engine.runtime.verify, "choose_likely_rows", count)
    served = load(checkpoint("llama"), DraftSpec("subspec", **SMALL))
    served._at_once = True
    run(served, asked(AT_ONCE))
    assert calls == 0
    answers = run(served, asked(ROW_BY_ROW))
    assert calls == sum(len(answer.ids) for answer in answers.values())


def head(hidden: Tensor) -> Tensor:
    return hidden * 2


def test_parts_cover_the_rows_and_blocks_are_computed_once() -> None:
    hidden, shown = torch.randn(200, 8), []
    logits = Logits(hidden, head, lambda first, block: shown.append((first, len(block.values))))
    parts = list(logits.parts(range(10, 140)))
    assert parts == [range(10, 64), range(64, 128), range(128, 140)]
    assert torch.equal(torch.cat([logits.span(part) for part in parts]), head(hidden[10:140]))
    assert list(logits.parts(range(140, 150))) == [range(140, 150)]
    assert torch.equal(logits.row(150), head(hidden[150]))
    assert shown == [(0, TILE), (64, TILE), (128, TILE)]


@pytest.mark.parametrize("root", [0, 5, 60, 100])
def test_the_tokens_of_a_tree_across_blocks_are_right(root: int) -> None:
    sequence = make_sequence([3, 4, 5], temperature=1.0, seed=9)
    hidden = torch.randn(180, 50)
    depths = [0, 1, 1, *range(2, 70)]
    chosen = choose_tree(sequence, depths, root, Logits(hidden, head, lambda *_: None))
    assert chosen == {
        row: choose(head(hidden[root + row]), sequence.params, None, position=3 + depth, choice=0)
        for row, depth in enumerate(depths)
    }


def test_rows_with_a_large_nucleus_are_left_to_the_walk_down_the_tree() -> None:
    sequence = make_sequence([3], temperature=1.0, top_p=0.99, seed=9)
    flat, steep = torch.zeros(1, 4000), torch.arange(4000.0)[None]
    logits = Logits(torch.cat([steep, flat, steep]), lambda rows: rows)
    assert choose_tree(sequence, [0, 1, 2], 0, logits).keys() == {0, 2}


def test_choices_that_depend_on_the_path_are_not_made_together() -> None:
    logits = Logits(torch.randn(3, 50), head, lambda *_: None)
    for kind in ROW_BY_ROW:
        assert choose_tree(make_sequence([3], **kind), [0, 1, 2], 0, logits) == {}


def test_a_block_whose_head_ran_out_of_memory_is_computed_again() -> None:
    hidden = torch.arange(2.0 * TILE).view(-1, 1)
    failing = [False, True, False]

    def head(rows: Tensor) -> Tensor:
        if failing.pop(0):
            raise torch.OutOfMemoryError
        return rows.expand(-1, 4)

    logits = Logits(hidden, head)
    assert logits.row(1).tolist() == [1.0] * 4
    with pytest.raises(torch.OutOfMemoryError):
        logits.row(TILE)
    assert logits.row(TILE + 1).tolist() == [TILE + 1.0] * 4
