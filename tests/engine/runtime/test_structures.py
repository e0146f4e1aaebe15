"""Tests of models whose layers differ, share keys and values, or see chunks: exact all the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.drafting.method import DraftNeeds
from engine.planning.blueprint import Blueprint
from engine.spec import DraftSpec
from engine.weights.family import kv_shape
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    VOCAB,
    load,
    model_spec,
    prompt,
    request,
    run,
)
from tests.engine.structures import (
    STRUCTURES,
    generated,
    save_structure,
    structure_config,
)
from tests.variations import variations

PROMPTS = {"long": prompt(70, 1), "short": prompt(9, 2) * 2}
NEW = 16  # tokens of an answer


@pytest.mark.parametrize("kind", variations(STRUCTURES, quick=["gemma3n_text", "llama4_text"]))
def test_answers_equal_the_librarys_with_any_draft(kind: str, tmp_path: Path) -> None:
    folder = save_structure(kind, tmp_path)
    want = {name: generated(folder, tokens, NEW) for name, tokens in PROMPTS.items()}
    specexec = DraftSpec("specexec", source=str(folder), **SMALL)
    drafts = [PLAIN, specexec, SUBSPEC]
    asked = [request(name, tokens, max_tokens=NEW, logprobs=2) for name, tokens in PROMPTS.items()]
    exact = []
    for draft in drafts:
        engine = load(folder, draft)
        for attempt in ("cold", "prefix cached"):
            found = run(engine, asked)
            exact.append([found[name, 0].exact for name in PROMPTS])
            for name, ids in want.items():
                assert found[name, 0].ids == ids, (draft.method, attempt, name)
        engine.close()
    assert all(own == exact[0] for own in exact)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_answers_with_fast_numerics_equal_the_librarys(kind: str, tmp_path: Path) -> None:
    folder = save_structure(kind, tmp_path)
    engine = load(folder, DraftSpec("ngram"), numerics="fast")
    found = run(engine, [request(name, t, max_tokens=NEW) for name, t in PROMPTS.items()])
    for name, tokens in PROMPTS.items():
        assert found[name, 0].ids == generated(folder, tokens, NEW), name


@pytest.mark.parametrize(
    ("kind", "layers", "width"),
    [
        ("gemma3n_text", 2, 2 * 16),
        ("gemma4_text", 2, 2 * 32),  # of the full layers
        ("llama4_text", 4, 2 * 16),
        ("mimo_v2_flash", 3, 2 * 16),  # of the keys of the layer with a window
    ],
)
def test_only_layers_with_keys_and_values_of_their_own_are_cached(
    kind: str, layers: int, width: int
) -> None:
    shape = kv_shape(structure_config(kind))
    found = shape.width or shape.num_kv_heads * shape.head_dim
    assert (shape.num_layers, found) == (layers, width)


def test_the_plan_keeps_the_inputs_of_all_layers_on_the_host(tmp_path: Path) -> None:
    folder = save_structure("gemma4_text", tmp_path)
    demand = Blueprint(model_spec(folder, PLAIN), folder).demand(
        DraftNeeds(scratch_rows=0), packed=True
    )
    layers, width = 5, 8
    assert demand.layer_inputs == layers * width
    assert demand.embedding_bytes == 4 * VOCAB * (64 + layers * width)
    assert demand.other_device_bytes < 4 * VOCAB * layers * width


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4_text"])
def test_stored_keys_of_a_layer_that_shares_those_of_another_are_skipped(
    kind: str, tmp_path: Path
) -> None:
    """Published checkpoints hold them, and the library skips them too."""
    file = save_structure(kind, tmp_path) / "model.safetensors"
    name = "model.layers.3.self_attn.k_proj.weight"
    save_file({**load_file(file), name: torch.zeros(32, 64)}, file)
    load(tmp_path, PLAIN)
