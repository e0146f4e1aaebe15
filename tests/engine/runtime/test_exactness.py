"""Tests of strict numerics: no bit of the output depends on draft, tree, batch or cache."""

from itertools import product
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.spec import DraftSpec, MemorySpec
from tests.engine.checkpoints import FAMILIES
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    alone,
    checkpoint,
    exact,
    load,
    prompt,
    request,
    run,
)
from tests.variations import variations

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2},
    "temperature": {"temperature": 1.0, "seed": 11, "logprobs": 0},
    "top_p": {"temperature": 0.9, "seed": 12, "top_p": 0.8},
    "top_k": {"temperature": 1.2, "seed": 13, "top_k": 5},
    "min_p": {"temperature": 1.0, "seed": 14, "min_p": 0.05},
    "penalties": {
        "temperature": 0.8,
        "seed": 15,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.4,
    },
    "bias": {"temperature": 1.0, "seed": 16, "logit_bias": ((7, 3.0), (9, -100.0))},
    "scored": {"prompt_logprobs": 2, "logprobs": 1},
    "min_tokens": {"ignore_eos": False, "min_tokens": 5, "stop_token_ids": (5, 17, 40, 90)},
}


def drafts(family: str) -> dict[str, DraftSpec]:
    """Return good drafts, and one whose guesses are random."""
    other = checkpoint("llama", seed=9, layers=1)
    return {
        "ngram": DraftSpec("ngram"),
        "specexec": DraftSpec("specexec", source=str(checkpoint(family)), **SMALL),
        "adversarial": DraftSpec("specexec", source=str(other), **SMALL),
        "subspec": SUBSPEC,
    }


def requests() -> list[Any]:
    """Return requests of different lengths and sampling, with prompts that suit n-gram drafts."""
    texts = [prompt(5, 1) * 4, prompt(70, 2), prompt(3, 3), prompt(40, 4) * 2]
    asked = [
        request(name, texts[i % len(texts)], **params)
        for i, (name, params) in enumerate(SAMPLINGS.items())
    ]
    return [*asked, request("n", texts[0], n=3, temperature=1.0, seed=21)]


@pytest.mark.parametrize("family", variations(FAMILIES, quick=["llama"]))
def test_answers_with_every_draft_equal_those_of_plain_decoding(family: str) -> None:
    plain = load(checkpoint(family), PLAIN)
    want = alone(plain, requests())
    plain.close()
    for name, draft in drafts(family).items():
        engine = load(checkpoint(family), draft)
        for attempt in ("cold", "prefix cached"):
            together = run(engine, requests())
            for key, answer in want.items():
                assert together[key].exact == answer.exact, (name, attempt, key)
        if name == "specexec":  # the target as its own draft: all tokens are accepted
            stats = together[("greedy", 0)].stats
            assert stats is not None and stats.passes < len(want[("greedy", 0)].ids)
        engine.close()


@pytest.mark.parametrize(
    ("family", "dtype"),
    variations(
        product(["llama", "qwen3_moe", "gemma2"], [torch.bfloat16, torch.float16]),
        quick=[("qwen3_moe", torch.bfloat16), ("gemma2", torch.float16)],
    ),
    ids=str,
)
def test_answers_in_16_bits_do_not_depend_on_the_draft(family: str, dtype: torch.dtype) -> None:
    folder = checkpoint(family, dtype)
    plain = load(folder, PLAIN)
    want = alone(plain, requests())
    engine = load(folder, DraftSpec("specexec", source=str(folder), **SMALL))
    together = run(engine, requests())
    assert exact(together) == exact(want)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_greedy_decoding_equals_generate(family: str) -> None:
    folder = checkpoint(family)
    ids = prompt(20, 5)
    model: Any = AutoModelForCausalLM
    model = model.from_pretrained(folder, attn_implementation="eager")
    inputs = torch.tensor([ids])
    want = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=30,
        do_sample=False,
        use_cache=False,  # with a cache, transformers 5.17 is wrong where longrope changes
        eos_token_id=None,
        pad_token_id=2,
    )[0, 20:].tolist()
    engine = load(folder, PLAIN)
    got = run(engine, [request("r", ids, max_tokens=30)])[("r", 0)]
    assert got.ids == want


def test_sequences_of_both_rope_frequencies_can_share_a_pass() -> None:
    """The longrope of phi3 changes its frequencies at 32 tokens."""
    folder = checkpoint("phi3_longrope")
    plain = load(folder, PLAIN)
    asked = [request("short", prompt(6, 1), max_tokens=12), request("long", prompt(50, 2))]
    crossing = request("crossing", prompt(28, 3), max_tokens=20)
    want = alone(plain, [*asked, crossing])
    engine = load(folder, SUBSPEC)
    together = run(engine, [*asked, crossing])
    assert exact(together) == exact(want)


def test_api_09_choices_differ_and_the_first_equals_that_of_n_1() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    params: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 16}
    four = run(engine, [request("four", prompt(10), n=4, **params)])
    one = run(engine, [request("one", prompt(10), n=1, **params)])
    texts = [tuple(four[("four", k)].ids) for k in range(4)]
    assert len(set(texts)) == 4
    assert texts[0] == tuple(one[("one", 0)].ids)


@pytest.mark.parametrize("draft", ["specexec", "subspec"])
@pytest.mark.parametrize("length", [1, 65], ids=["one token", "a page and one token"])
def test_choices_are_exact_if_one_row_of_the_prompt_is_left_to_run(length: int, draft: str) -> None:
    """All choices continue from the prompt's KV, so its last row must not have a draft."""
    params: dict[str, Any] = {"temperature": 0.3, "max_tokens": 16}
    asked = [request(str(i), [9] * length, n=3, seed=i, **params) for i in range(2)]
    want = alone(load(checkpoint("llama"), PLAIN), asked)
    engine = load(checkpoint("llama"), drafts("llama")[draft])
    run(engine, [request("before", [9] * length, max_tokens=2)])
    got = alone(engine, asked)
    assert exact(got) == exact(want)
    engine.close()


def test_equal_seeds_give_equal_answers_and_other_seeds_do_not() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    asked = [request(str(i), prompt(9), temperature=1.0, seed=i // 2) for i in range(4)]
    answers = run(engine, asked)
    ids = [answers[(str(i), 0)].ids for i in range(4)]
    assert ids[0] == ids[1] and ids[2] == ids[3] and ids[0] != ids[2]


def test_pauses_for_lack_of_pages_do_not_change_answers() -> None:
    folder = checkpoint("llama")
    asked = [request(str(i), prompt(60, i), max_tokens=80) for i in range(8)]
    plain = load(folder, PLAIN)
    want = alone(plain, asked)
    engine = load(
        folder,
        SUBSPEC,
        memory=MemorySpec(device=3100 << 10),
        context_length=256,
    )
    pages = engine._cache.num_pages
    assert pages * 64 < 4 * 140, "the cache holds fewer than four of the eight"
    together = run(engine, asked)
    assert exact(together) == exact(want)
    assert engine._cache.num_free_pages == pages


def test_fast_numerics_answer_every_request() -> None:
    engine = load(checkpoint("llama"), SUBSPEC, numerics="fast")
    answers = run(engine, requests())
    assert all(answer.finish in ("stop", "length") for answer in answers.values())
