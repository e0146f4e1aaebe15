"""Tests of models with latent attention: answers are those of plain decoding and of the library."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.drafting.tree import Bounds
from engine.messages import Generate
from engine.runtime.engine import Engine
from engine.spec import DraftSpec
from engine.weights.family import kv_shape
from tests.engine.books import check_idle
from tests.engine.checkpoints import tiny_config
from tests.engine.latents import LATENTS
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
from tests.engine.structures import generated
from tests.engine.traffic import Guesses
from tests.variations import variations

NEW = 24
PROMPTS = {"long": prompt(150, 1), "short": prompt(3, 2), "repeated": prompt(5, 3) * 8}
WIDTH = 16 + 8  # of a latent and the rotated part of a key


def asked(**params: Any) -> list[Generate]:
    return [request(name, tokens, max_tokens=NEW, **params) for name, tokens in PROMPTS.items()]


def sampled() -> list[Generate]:
    return [
        request("three", prompt(70, 4), n=3, temperature=1.0, seed=2, max_tokens=NEW),
        request("scored", prompt(20, 5), prompt_logprobs=1, logprobs=1, max_tokens=NEW),
    ]


def drafts(family: str) -> dict[str, DraftSpec]:
    """Return good drafts, and one whose guesses are random."""
    other = checkpoint("llama", seed=9, layers=1)
    return {
        "ngram": DraftSpec("ngram"),
        "specexec": DraftSpec("specexec", source=str(checkpoint(family)), **SMALL),
        "adversarial": DraftSpec("specexec", source=str(other), **SMALL),
        "subspec": SUBSPEC,
    }


@pytest.mark.parametrize("family", variations(LATENTS, quick=["deepseek_v3"]))
def test_answers_equal_plain_decoding_and_the_librarys(family: str) -> None:
    folder, messages = checkpoint(family), [*asked(logprobs=2), *sampled()]
    plain = load(folder, PLAIN)
    want = alone(plain, messages)
    plain.close()
    for name, tokens in PROMPTS.items():
        assert want[name, 0].ids == generated(folder, tokens, NEW), name
    for name, draft in drafts(family).items():
        engine = load(folder, draft)
        for attempt in ("cold", "prefix cached"):
            found = run(engine, messages)
            assert exact(found) == exact(want), (name, attempt)
        if name in ("specexec", "subspec"):  # the target itself, or nearly
            stats = found["long", 0].stats
            assert stats is not None and stats.passes < NEW // 2, name
        check_idle(engine)
        engine.close()


def test_trees_of_several_tiles_change_no_answer() -> None:
    folder, other = checkpoint("deepseek_v3"), checkpoint("llama", seed=9, layers=1)
    want = alone(load(folder, PLAIN), asked(logprobs=2))
    bounds: dict[str, Any] = {"depth": 6, "width": 24, "branch": 8, "budget": 150, "tuned": False}
    engine = load(folder, DraftSpec("specexec", source=str(other), **bounds))
    engine._drafting._lookups = [Guesses(want, random.Random(3))]
    found = run(engine, asked(logprobs=2))
    assert exact(found) == exact(want)
    stats = [answer.stats for answer in found.values() if answer.stats is not None]
    assert sum(own.drafted for own in stats) > 64 * sum(own.passes for own in stats)
    assert sum(own.accepted for own in stats) > NEW


@pytest.mark.parametrize(
    "dtype", variations([torch.bfloat16, torch.float16], quick=[torch.bfloat16]), ids=str
)
def test_answers_in_16_bits_do_not_depend_on_the_draft(dtype: torch.dtype) -> None:
    folder = checkpoint("deepseek_v3", dtype)
    want = alone(load(folder, PLAIN), asked(logprobs=1))
    engine = load(folder, DraftSpec("ngram", depth=24, width=1, budget=24))
    engine._drafting._lookups = [Guesses(want, random.Random(5))]
    engine._drafting._bounds = Bounds(depth=24, width=1, branch=1, budget=24)
    assert exact(run(engine, asked(logprobs=1))) == exact(want)


@pytest.mark.parametrize("family", ["deepseek_v2", "minicpm3"])
def test_answers_with_fast_numerics_equal_the_librarys(family: str) -> None:
    folder = checkpoint(family)
    engine = load(folder, DraftSpec("ngram"), numerics="fast")
    found = run(engine, asked())
    for name, tokens in PROMPTS.items():
        assert found[name, 0].ids == generated(folder, tokens, NEW), name


def cached(engine: Engine, name: str, tokens: list[int]) -> tuple[int, list[int]]:
    """Return how many tokens of a prompt were found in the cache, and the answer."""
    ((_, answer),) = run(engine, [request(name, tokens)]).items()
    assert answer.stats is not None
    return answer.stats.cached_tokens, answer.ids


def test_the_second_turn_of_a_chat_runs_only_its_new_tokens() -> None:
    folder, first = checkpoint("deepseek_v3"), prompt(129, 7)
    engine, plain = load(folder, PLAIN), load(folder, PLAIN, prefix_cache=False)
    _, answer = cached(engine, "first", first)
    whole = [*first, *answer, *prompt(9, 8)]
    found, second = cached(engine, "second", whole)
    assert found >= len(first) + len(answer) - 1
    assert second == cached(plain, "second", whole)[1]


@pytest.mark.parametrize("family", LATENTS)
def test_the_cache_has_one_vector_of_a_token_and_layer(family: str) -> None:
    shape = kv_shape(tiny_config(family))
    assert (shape.num_layers, shape.num_kv_heads, shape.head_dim) == (3, 1, WIDTH)
    assert shape.bytes_per_token(torch.bfloat16) == 2 * 3 * WIDTH


def test_values_have_no_memory_of_their_own() -> None:
    pool = load(checkpoint("deepseek_v3"), PLAIN)._cache.pool
    assert pool.memory.shape == (3, pool.num_pages * 64, 1, WIDTH)
    assert pool.values.data_ptr() == pool.keys.data_ptr()


def test_only_the_attention_layers_of_kimi_linear_have_latents() -> None:
    assert kv_shape(tiny_config("kimi_linear")).bytes_per_token(torch.float32) == 4 * WIDTH


def test_layers_that_predict_further_tokens_are_skipped(tmp_path: Path) -> None:
    """Published checkpoints of DeepSeek-V3 hold one more layer, and the library skips it too."""
    folder = shutil.copytree(checkpoint("deepseek_v3"), tmp_path / "model")
    name = "model.layers.61.eh_proj.weight"
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file({**load_file(file), name: torch.zeros(64, 128)}, file)
    index = folder / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    held["weight_map"][name] = file.name
    index.write_text(json.dumps(held))
    load(folder, PLAIN)
