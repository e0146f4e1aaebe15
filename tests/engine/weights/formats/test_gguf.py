"""Models in GGUF files: every family and every type has the values of the original model."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.messages import LoadProgress
from engine.model.library import build_of_folder
from engine.spec import DraftSpec, TargetSpec
from engine.weights.family import read_config
from engine.weights.gguf_blocks import expand_blocks
from engine.weights.gguf_file import TYPES
from engine.weights.hub import resolve
from engine.weights.packing import dense_layout, expand
from engine.weights.precision import computed_dtype
from engine.weights.safetensors import StoredRows
from engine.weights.units import CheckpointUnits
from tests.engine.checkpoints import STORED_FAMILIES, save_tiny
from tests.engine.gguf_files import ADDS_ONE, Array, Kind, config_of, state_of, write_gguf
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    VOCAB,
    add_tokenizer,
    exact,
    load,
    prompt,
    request,
    run,
)

BLOCKS = [type_ for type_ in TYPES.values() if not type_.is_plain]


def silent(step: LoadProgress) -> None:
    pass


def folder_of(path: Path) -> Path:
    return resolve(str(path), None, silent).folder


# Values of blocks


@pytest.mark.parametrize("type_", BLOCKS, ids=lambda type_: type_.name)
def test_blocks_have_the_bits_of_the_gguf_package(type_: Any) -> None:
    kind = next(kind for kind in Kind if kind.name == type_.name)
    assert GGML_QUANT_SIZES[kind] == (type_.size, type_.nbytes)
    assert TYPES[int(kind)] == type_
    blocks = np.random.default_rng(0).integers(0, 256, (300, type_.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # some scales are NaN or infinite
        wanted = gguf.dequantize(blocks, kind).reshape(300, type_.size)
    found = expand_blocks(type_.name, torch.from_numpy(blocks)).numpy()
    is_nan = np.isnan(wanted)
    assert (np.isnan(found) == is_nan).all()
    assert (found.view(np.uint32) == wanted.view(np.uint32))[~is_nan].all()


# Families

# Values of config.json that change neither weights nor logits, or that GGUF does not have.
UNSTORED = {
    "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "initializer_range", "is_encoder_decoder", "output_router_logits",
    "pad_token_id", "quantization_config", "router_aux_loss_coef", "transformers_version",
    "_name_or_path", "router_jitter_noise", "max_window_layers", "use_cache",
}  # fmt: skip

# Families with layers that lack what others have.
IRREGULAR = ("gemma3n", "gemma4", "gemma4_experts")

# A mistral without a window is a llama, and the original length of Phi-3 belongs to its longrope.
SAME = {"mistral": {"model_type", "sliding_window"}, "phi3": {"original_max_position_embeddings"}}


@pytest.mark.parametrize("family", STORED_FAMILIES)
def test_a_family_has_the_configuration_and_weights_of_the_original(
    family: str, tmp_path: Path
) -> None:
    is_gemma = family.startswith("gemma")
    layers = 4 if family in IRREGULAR else 2
    original = save_tiny(family, tmp_path / "original", layers=layers, tied=is_gemma)
    made = folder_of(write_gguf(original, tmp_path / f"{family}.gguf"))
    wanted, found = config_of(original), config_of(made)
    unstored = UNSTORED | SAME.get(family, set())
    differing = {
        key: (value, found.get(key))
        for key, value in wanted.items()
        if key not in unstored and found.get(key) != value
    }
    assert differing == {}
    state, read = state_of(original), state_of(made)
    assert state.keys() == read.keys()
    for name, tensor in state.items():
        shifted = wanted["model_type"] in ADDS_ONE and name.endswith("norm.weight")
        assert torch.equal(read[name], (tensor + 1) - 1 if shifted else tensor), name


def mixed(name: str, values: Array) -> Kind:
    """Return the types of a file as llama.cpp's quantizer chooses them: norms stay F32."""
    if values.ndim == 1:
        return Kind.F32
    return Kind.Q4_0 if "ffn" in name else Kind.Q8_0


def test_blocks_are_rounded_once_to_the_type_of_the_model(tmp_path: Path) -> None:
    original = save_tiny("mixtral", tmp_path / "original", layers=1)
    made = folder_of(write_gguf(original, tmp_path / "m.gguf", mixed))
    state = state_of(made)
    rounded = state_of(made, torch.bfloat16)
    for name, tensor in state.items():
        assert torch.equal(rounded[name], tensor.bfloat16()), name
    exact, down = state_of(original), "model.layers.0.mlp.experts.down_proj"
    with pytest.raises(AssertionError):
        torch.testing.assert_close(state[down], exact[down])
    one = gguf.dequantize(gguf.quantize(exact[down].numpy(), Kind.Q4_0), Kind.Q4_0)
    assert torch.equal(state[down], torch.from_numpy(one))


def test_an_embedding_in_blocks_stays_in_its_file(tmp_path: Path) -> None:
    original = save_tiny("llama", tmp_path / "original", layers=1, tied=True)
    made = folder_of(write_gguf(original, tmp_path / "m.gguf", mixed))
    model = build_of_folder(made, read_config(made), torch.bfloat16, strict=True)
    units = CheckpointUnits(made, model, torch.bfloat16)
    rows = units.other_tensors()["model.embed_tokens.weight"]
    assert isinstance(rows, StoredRows)
    assert torch.equal(rows.read([5, 0, 5]), rows.load()[[5, 0, 5]])
    assert torch.equal(rows.load(), state_of(made, torch.bfloat16)["lm_head.weight"])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gemma4_experts"])
def test_a_slice_of_experts_is_read_alone(family: str, packed: bool, tmp_path: Path) -> None:
    original = save_tiny(family, tmp_path / "original", layers=1)
    made = folder_of(write_gguf(original, tmp_path / "m.gguf", mixed))
    model = build_of_folder(made, read_config(made), torch.float32, strict=True)
    units = CheckpointUnits(made, model, torch.float32, slice_bytes=1 << 17)
    units = units if packed else units.expanded()
    assert len(units.layers[0].slices) > 1
    whole, read = state_of(made), 0
    for index, held in enumerate(units.layers[0].slices, 1):
        layout = units.layouts[index]
        buffer = torch.empty(layout.nbytes, dtype=torch.uint8)
        units.read(index, buffer)
        dense = dense_layout(layout, torch.float32)
        views = dense.views(torch.empty(dense.nbytes, dtype=torch.uint8))
        assert bool(views) == packed
        for name, values in expand(layout.views(buffer), views).items():
            wanted = whole[f"model.layers.0.{name}"][held.start : held.stop]
            assert torch.equal(values, wanted), name
            read += 1
    assert read >= 4


@pytest.mark.parametrize(
    ("kind", "named", "dtype"),
    [
        (lambda name, values: Kind.F32, None, torch.float32),
        (lambda name, values: Kind.F16 if values.ndim > 1 else Kind.F32, None, torch.float16),
        (lambda name, values: Kind.BF16 if values.ndim > 1 else Kind.F32, None, torch.bfloat16),
        (mixed, None, torch.bfloat16),
        (mixed, "float32", torch.float32),
    ],
)
def test_a_model_computes_in_the_type_of_its_plain_weights_else_in_bfloat16(
    kind: Any, named: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    original = save_tiny("llama", tmp_path / "original", layers=1)
    made = folder_of(write_gguf(original, tmp_path / "m.gguf", kind))
    assert computed_dtype(named, read_config(made), made) == dtype
    stored = read_config(made).quantization_config["tensors"]
    assert set(stored.values()) == ({"Q4_0", "Q8_0"} if kind is mixed else set())


def test_a_split_model_is_read_whole(tmp_path: Path) -> None:
    original = save_tiny("llama", tmp_path / "original", layers=2)
    write_gguf(original, tmp_path / "m.gguf", split_max_tensors=8)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 2
    found = state_of(folder_of(parts[1]))
    for name, tensor in state_of(original).items():
        assert torch.equal(found[name], tensor), name


def test_factors_that_are_not_llama3s_divide_the_frequencies(tmp_path: Path) -> None:
    original = save_tiny("mistral", tmp_path / "original", layers=1)
    factors = np.linspace(1, 3, 8, dtype=np.float32)

    def change(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    made = folder_of(write_gguf(original, tmp_path / "m.gguf", change=change))
    plain = build_of_folder(original, read_config(original), torch.float32, strict=True)
    model = build_of_folder(made, read_config(made), torch.float32, strict=True)
    assert torch.allclose(
        frequencies(model), frequencies(plain) / torch.from_numpy(factors), rtol=1e-6
    )


def frequencies(model: Any) -> torch.Tensor:
    config: Any = model.config
    rope: dict[str, Any] = config.rope_parameters
    kind = rope["rope_type"]
    if kind == "default":
        exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
        return torch.pow(rope["rope_theta"], -exponents)
    compute: Any = ROPE_INIT_FUNCTIONS[kind]
    made: torch.Tensor = compute(config, torch.device("cpu"))[0]
    return made


# Whole models


@pytest.mark.parametrize("draft", [PLAIN, SUBSPEC])
def test_a_served_file_has_the_answers_of_its_dequantized_weights(
    draft: DraftSpec, tmp_path: Path
) -> None:
    original = save_tiny("llama", tmp_path / "original", layers=2, vocab_size=VOCAB)
    path = write_gguf(original, tmp_path / "m.gguf", mixed)
    twin: Any = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    twin.load_state_dict(state_of(folder_of(path)))
    twin.save_pretrained(tmp_path / "twin")
    add_tokenizer(tmp_path / "twin")
    requests = [request("a", prompt(70)), request("b", prompt(5), temperature=1.0, seed=3)]
    answers = [
        exact(run(load(place, draft, target=TargetSpec(str(place), dtype="float32")), requests))
        for place in (path, tmp_path / "twin")
    ]
    assert answers[0] == answers[1]
    with torch.no_grad():
        ids = torch.tensor([prompt(70)])
        greedy = twin.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert answers[0]["a", 0][0] == greedy[0, 70:].tolist()


@pytest.mark.parametrize(
    "family", ["gemma", "stablelm", "stablelm_parallel", "nemotron", *IRREGULAR]
)
def test_a_served_file_has_the_logits_of_the_original(family: str, tmp_path: Path) -> None:
    is_gemma, layers = family.startswith("gemma"), 4 if family in IRREGULAR else 2
    original = save_tiny(family, tmp_path / "original", layers=layers, tied=is_gemma)
    path = write_gguf(original, tmp_path / "m.gguf")
    asked = request("a", prompt(70), logprobs=0)
    answer = run(load(path, PLAIN), [asked])["a", 0]
    model: Any = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    ids = torch.tensor([[*asked.prompt, *answer.ids]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, len(asked.prompt) - 1 : -1].log_softmax(-1)
    assert logprobs.argmax(-1).tolist() == answer.ids
    found = torch.tensor([own.logprob for own in answer.logprobs])
    torch.testing.assert_close(found, logprobs.amax(-1), rtol=1e-4, atol=1e-4)
