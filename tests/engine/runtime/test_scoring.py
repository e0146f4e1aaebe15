"""Tests of prompt log-probabilities, and of the origins of emitted tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.errors import RequestError
from engine.messages import Origin, TokenLogprob
from engine.spec import DraftSpec
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    Answer,
    alone,
    checkpoint,
    exact,
    hooks,
    load,
    prompt,
    request,
    run,
)
from tests.engine.sequence_makers import make_sequence

SCORED: dict[str, Any] = {"prompt_logprobs": 2, "max_tokens": 0}


def reference(family: str, ids: Sequence[int]) -> Tensor:
    """Return log-probabilities [R - 1, V] of the next tokens, computed by transformers alone."""
    model: Any = AutoModelForCausalLM
    model = model.from_pretrained(checkpoint(family), attn_implementation="eager")
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "phi3_longrope"])
def test_api_08_prompt_logprobs_equal_those_of_transformers(family: str) -> None:
    ids = prompt(150, 1)
    answer = run(load(checkpoint(family), PLAIN), [request("r", ids, **SCORED)])[("r", 0)]
    first, *rest = answer.prompt_logprobs
    assert first is None and len(rest) == len(ids) - 1
    for entry, token, row in zip(rest, ids[1:], reference(family, ids), strict=True):
        assert entry is not None and entry.token == token
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        best = row.topk(2)
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_api_08_a_prompt_is_scored_in_blocks_of_64_rows_in_one_pass() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    seen: list[int] = []
    decoder: Any = engine._decoder
    head = decoder._logits

    def watched(hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        result: Tensor = head(hidden)
        return result

    decoder._logits = watched
    answer = run(engine, [request("r", prompt(200), n=2, **SCORED)])[("r", 0)]
    assert seen == [64] * 4
    assert answer.stats is not None and answer.stats.passes == 1


def test_api_08_a_request_that_only_scores_emits_no_token() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    answers = run(engine, [request("r", prompt(70), n=3, **SCORED)])
    for choice in range(3):
        answer = answers[("r", choice)]
        assert (answer.ids, answer.text, answer.finish) == ([], "", "length")
        assert answer.stats is not None and answer.stats.completion_tokens == 0
    scored = [len(answers[("r", choice)].prompt_logprobs) for choice in range(3)]
    assert scored == [70, 0, 0], "only with the first choice"
    assert not engine.has_work() and engine._cache.num_free_pages == engine._cache.num_pages


def test_a_prompt_of_one_token_has_no_logprobs() -> None:
    answer = run(load(checkpoint("llama"), PLAIN), [request("r", [5], **SCORED)])[("r", 0)]
    assert answer.prompt_logprobs == [None]


def test_a_prompt_that_fills_the_context_can_be_scored() -> None:
    engine = load(checkpoint("llama"), PLAIN)
    longest = engine.info.context_length
    answer = run(engine, [request("r", prompt(longest), **SCORED)])[("r", 0)]
    assert len(answer.prompt_logprobs) == longest
    with pytest.raises(RequestError):
        engine.add(request("r", prompt(longest + 1), **SCORED))


def test_scored_prompts_fill_the_prefix_cache_but_do_not_use_it() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    scored, plain = request("r", prompt(150), **SCORED), request("p", prompt(150), max_tokens=4)
    first = run(engine, [scored])[("r", 0)]
    after = run(engine, [plain])[("p", 0)]
    again = run(engine, [scored])[("r", 0)]
    assert again.prompt_logprobs == first.prompt_logprobs
    cached = [answer.stats and answer.stats.cached_tokens for answer in (first, after, again)]
    assert cached == [0, 149, 0]


@pytest.mark.parametrize("rows", [64, 100, 130])
def test_logprobs_do_not_depend_on_the_passes_of_a_prompt(rows: int) -> None:
    asked = [request(str(i), prompt(170 + i, i), prompt_logprobs=i, max_tokens=3) for i in range(3)]
    engine = load(checkpoint("llama"), PLAIN)
    want = alone(engine, asked)
    engine._scheduler.max_rows = rows
    assert exact(run(engine, asked)) == exact(want)


def test_a_paused_prompt_reuses_only_rows_that_have_been_scored() -> None:
    sequence = make_sequence(prompt(100), prompt_logprobs=0)
    assert len(sequence.reusable) == 1, "no row: the last token of these is never reused"
    sequence.score([TokenLogprob(7, -1.0, ())] * 63)
    assert len(sequence.reusable) == 64
    sequence.score([TokenLogprob(7, -1.0, ())] * 36)
    assert sequence.reusable == sequence.tokens
    assert make_sequence(prompt(100)).reusable == prompt(100)


def test_scoring_a_prompt_ends_when_its_client_leaves() -> None:
    engine = load(checkpoint("llama"), PLAIN)
    want = run(engine, [request("before", prompt(9))])[("before", 0)]
    calls: list[int] = []
    hooks(engine).on_unit = calls.append
    run(engine, [request("r", prompt(500), **SCORED)])
    in_layers, blocks = len(calls) - 8, 8  # the last block holds the last rows

    def leave(_: int) -> None:
        calls.append(0)
        if len(calls) == in_layers + 2:
            engine.abort("gone")

    calls.clear()
    hooks(engine).on_unit = leave
    engine.add(request("gone", prompt(500), **SCORED))
    assert engine.step() == []
    assert len(calls) == in_layers + 2 < in_layers + blocks
    assert engine.step() == [] and not engine.has_work()
    hooks(engine).on_unit = None
    assert run(engine, [request("next", prompt(9))])[("next", 0)].exact == want.exact


def passes_of(answer: Answer) -> list[list[Origin]]:
    """Return the origins of the tokens of each pass."""
    numbers = sorted({origin.pass_number for origin in answer.origins})
    return [[o for o in answer.origins if o.pass_number == number] for number in numbers]


@pytest.mark.parametrize("method", ["specexec", "ngram", "none"])
def test_each_token_has_its_draft_its_depth_and_its_pass(method: str) -> None:
    folder = checkpoint("llama")
    own = {"source": str(folder), **SMALL} if method == "specexec" else {}
    engine = load(folder, DraftSpec(method, **own))
    answer = run(engine, [request("r", prompt(5, 1) * 4, max_tokens=40)])[("r", 0)]
    assert answer.stats is not None
    assert len(answer.origins) == len(answer.ids) == 40
    emitted = passes_of(answer)
    assert len(emitted) == answer.stats.passes
    assert [origin.pass_number for origin in answer.origins] == sorted(
        origin.pass_number for origin in answer.origins
    )
    for number, origins in enumerate(emitted, 1):
        *drafted, last = origins
        assert [o.depth for o in drafted] == list(range(1, len(origins)))
        assert (last.source, last.depth) == ("target", 0) or number == len(emitted)
        assert {o.source for o in drafted} <= {method, "ngram", "recycling"}
    drafted_tokens = sum(origin.source != "target" for origin in answer.origins)
    assert drafted_tokens - answer.stats.accepted in (0, 1), (
        "a drafted last token may not count as accepted"
    )
    assert (drafted_tokens > 0) == (method != "none")


def test_choices_count_the_passes_of_their_shared_prompt() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    engine._scheduler.max_rows = 64
    answers = run(engine, [request("r", prompt(100), n=2, temperature=1.0, seed=1)])
    starts = [answers[("r", choice)].origins[0] for choice in range(2)]
    assert starts == [Origin("target", 0, 2)] * 2


def test_api_09_more_choices_than_may_run_are_answered_in_turn() -> None:
    params: dict[str, Any] = {"temperature": 1.0, "max_tokens": 6, "prompt_logprobs": 0}
    asked = [request(str(i), prompt(20, i), n=3, seed=i, **params) for i in range(3)]
    want = alone(load(checkpoint("llama"), PLAIN), asked)
    got = run(load(checkpoint("llama"), SUBSPEC, max_sequences=2), asked)
    assert len(got) == 9 and exact(got) == exact(want)
