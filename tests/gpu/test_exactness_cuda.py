"""Tests that on CUDA output does not depend on draft, batch, cache or the tier of the weights.

They need only the dependencies of the engine.
"""

from typing import Any

import pytest
import torch

import engine.planning.blueprint
from engine.spec import DraftSpec, MemorySpec, StreamSpec
from tests.engine import hybrids
from tests.engine.checkpoints import FAMILIES
from tests.engine.models import (
    PLAIN,
    SMALL,
    alone,
    checkpoint,
    exact,
    hooks,
    load,
    prompt,
    request,
    run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA: dict[str, Any] = {"device": "cuda:0", "memory": MemorySpec(device=1 << 30)}
DENSE = [family for family in FAMILIES if family not in ("mixtral", "qwen3_moe", "gpt_oss")]


def asked() -> list[Any]:
    return [
        request("greedy", prompt(5, 1) * 4, logprobs=2),
        request("long", prompt(150, 2)),
        request("sampled", prompt(30, 3), temperature=1.0, top_p=0.9, seed=3),
        request("choices", prompt(9, 4), n=3, temperature=1.2, seed=4),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", hybrids.DENSE)
def test_drafts_of_hybrids_emit_the_tokens_of_plain_decoding(
    family: str, dtype: torch.dtype
) -> None:
    folder = checkpoint(family, dtype)
    plain = load(folder, PLAIN, **CUDA)
    want = exact(alone(plain, asked()))
    plain.close()
    made = load(folder, DraftSpec("subspec", **SMALL), **CUDA)
    found = run(made, asked())
    assert exact(found) == want
    stats = [answer.stats for answer in found.values() if answer.stats is not None]
    assert 2 * sum(own.accepted for own in stats) > sum(own.passes for own in stats)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_draft_emits_the_tokens_of_plain_decoding(family: str, dtype: torch.dtype) -> None:
    folder = checkpoint(family, dtype)
    plain = load(folder, PLAIN, **CUDA)
    want = exact(alone(plain, asked()))
    plain.close()
    drafts = [DraftSpec("ngram"), DraftSpec("specexec", source=str(folder), **SMALL)]
    if family in DENSE:
        drafts.append(DraftSpec("subspec", **SMALL))
    for draft in drafts:
        made = load(folder, draft, **CUDA)
        for attempt in ("cold", "prefix cached"):
            assert exact(run(made, asked())) == want, (draft.method, attempt)
        made.close()


@pytest.mark.parametrize(
    "stream",
    [
        StreamSpec(tier="ram", slots=1),
        StreamSpec(tier="ram", slots=3),
        StreamSpec(tier="disk", slots=2),
        StreamSpec(tier="resident"),
        StreamSpec(resident=1, slots=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("part_bytes", [1, 1 << 30], ids=["parts", "whole"])
def test_output_does_not_depend_on_the_tier_of_the_weights(
    stream: StreamSpec, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llama", torch.bfloat16)
    plain = load(folder, PLAIN, **CUDA)
    want = exact(run(plain, asked()))
    plain.close()
    monkeypatch.setattr(engine.planning.blueprint, "PART_BYTES", part_bytes)
    made = load(folder, DraftSpec("subspec", **SMALL), stream=stream, **CUDA)
    assert exact(run(made, asked())) == want
    made.close()


def test_aborted_requests_release_their_pages() -> None:
    made = load(checkpoint("llama"), DraftSpec("subspec", **SMALL), **CUDA)
    want = exact(run(made, asked()))
    for message in asked():
        made.add(message)
    hooks(made).on_unit = lambda count: made.abort("long")
    made.step()
    hooks(made).on_unit = None
    for message in asked():
        made.abort(message.request_id)
    made.step()
    assert made._cache.num_free_pages == made._cache.num_pages
    assert exact(run(made, asked())) == want
    made.close()
