"""Tests of `replay`: trees are right to the depth of the script, with a fixed number of rows."""

import statistics
from pathlib import Path

import pytest

from benchmarks.drafters.replay import Replay, Script, read_scripts, write_scripts
from engine.drafting.tree import DraftTree
from engine.errors import ModelError
from engine.runtime.verify import verify
from engine.sequences.sequence import TokenSequence
from tests.engine.sequence_makers import make_sequence

PROMPT = (3, 4, 5)
ANSWER = tuple(10 + i % 50 for i in range(400))


def replayed(script: Script, *, max_tokens: int, rows: int = 16) -> list[int]:
    """Return how many tokens each pass emits while a target follows the script."""
    sequence = make_sequence(list(PROMPT), max_tokens=max_tokens)
    replay = Replay({sequence.request_id: script}, vocab_size=128)
    sequence.emit(ANSWER[0])
    emitted = []
    while sequence.max_new_tokens > 0:
        depth = sequence.max_draft_depth
        tree = replay.propose(sequence, depth, rows)
        assert tree is not None
        assert len(tree) == rows or max(tree.depths) == depth
        emitted.append(_advance(sequence, tree, script))
    return emitted


def _advance(sequence: TokenSequence, tree: DraftTree, script: Script) -> int:
    at = len(sequence.tokens)

    def emit(_row: int, token: int) -> bool:
        sequence.emit(token)
        return sequence.max_new_tokens == 0

    return len(verify(tree, lambda row: script.tokens[at + tree.depths[row]], emit))


@pytest.mark.parametrize("mean", [1, 4, 8])
def test_each_pass_emits_what_the_script_says(mean: int) -> None:
    script = Script(PROMPT + ANSWER, mean)
    assert replayed(script, max_tokens=1 + 10 * mean) == [mean] * 10


def test_a_fractional_mean_is_kept_and_repeatable() -> None:
    script = Script(PROMPT + ANSWER, 2.5, seed=1)
    emitted = replayed(script, max_tokens=380)[:-1]
    assert set(emitted) == {2, 3}
    assert statistics.fmean(emitted) == pytest.approx(2.5, abs=0.15)
    assert replayed(script, max_tokens=380)[:-1] == emitted


def test_a_request_without_a_script_gets_no_tree() -> None:
    sequence = make_sequence(list(PROMPT))
    assert Replay({}, vocab_size=128).propose(sequence, 4, 16) is None


def test_a_target_that_departs_from_the_recording_is_refused() -> None:
    sequence = make_sequence(list(PROMPT))
    name = sequence.request_id
    sequence.emit(ANSWER[0] + 1)
    with pytest.raises(ModelError, match="departs from its recording"):
        Replay({name: Script(PROMPT + ANSWER, 4)}, 128).propose(sequence, 4, 16)


def test_scripts_are_read_as_they_were_written(tmp_path: Path) -> None:
    scripts = {"a": Script((1, 2), 1.5, seed=7), "b": Script((3,), 28)}
    write_scripts(tmp_path / "scripts.json", scripts)
    assert read_scripts(tmp_path / "scripts.json") == scripts


def test_a_file_without_scripts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scripts.json").write_text('{"a": {"tokens": [1]}}')
    with pytest.raises(ModelError, match=r"scripts\.json holds no scripts"):
        read_scripts(tmp_path / "scripts.json")
