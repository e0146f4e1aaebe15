"""Tests of the text that a draft always predicts, and of the benchmarks that use it."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import batch, link
from benchmarks.known_text import counting_model, counting_prompt, fill_trees
from benchmarks.random_model import Shape
from benchmarks.runs import DEMO, GREEDY, UNLIMITED_GBPS, drive, make_request, ram_spec, session
from engine.spec import DraftSpec

TARGET = DEMO / "target"
TINY = Shape(
    layers=2, hidden=128, intermediate=128, heads=2, kv_heads=1, vocabulary=4096, context=512
)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_model(tmp_path_factory.mktemp("counting"), TINY).folder


def test_the_model_and_its_4_bit_copy_count(counting: Path) -> None:
    draft = DraftSpec("subspec", depth=4, width=2, branch=2, budget=16, tuned=False, ahead=False)
    with session(ram_spec(counting, draft, gbps=UNLIMITED_GBPS, max_sequences=1)) as served:
        fill_trees(served, 16)
        prompt = counting_prompt(5)
        run = drive(served, [make_request("a", prompt, replace(GREEDY, max_tokens=16))])
    assert run.tokens_of("a") == tuple(range(prompt[-1] + 1, prompt[-1] + 17))
    full = run.passes[1:-1]
    assert [(stats.rows, stats.accepted) for stats in full] == [(16, 5)] * 2


@pytest.mark.long
def test_batch_reports_its_ratios_and_has_a_bar_for_eight_users(counting: Path) -> None:
    figures = batch.measure(counting, TARGET, 8, 2, passes=1, rounds=1)
    users = [row[1] for row in figures.tables[0].rows]
    assert users == 2 * list(batch.USERS)
    fixed = [row for row in figures.tables[0].rows if row[0] == batch.FIXED]
    assert [row[-1] for row in fixed] == [8 * number for number in batch.USERS]
    assert figures.values["compute_of_8_trees_over_w_over_b"] > 0
    assert figures.values["draft_of_one_user_over_w_over_b"] > 0
    assert all(bar.value > 0 and bar.bound == batch.AT_LEAST for bar in figures.bars)


@pytest.mark.long
def test_link_has_bars_for_full_trees_and_a_table_for_chats(counting: Path) -> None:
    known = link.Text(counting, [counting_prompt(5)])
    chat = link.Text(TARGET, [counting_prompt(9)])
    figures = link.measure(known, chat, 8, slots=None, cycles=(2, 1), rounds=1)
    in_full, in_chat = figures.tables
    assert [row[0] for row in in_full.rows] == [link.SERIAL, link.AHEAD]
    assert [row[1] for row in in_full.rows] == [8, 8]
    assert [row[0] for row in in_chat.rows] == [link.SERIAL, link.AHEAD, link.TUNED]
    assert len(figures.bars) == 4
