"""Weights that travel packed give the same bits as weights that are expanded at load."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from safetensors.torch import load_file

from engine.messages import Generate
from engine.planning import blueprint
from engine.planning.preview import WhatIf, preview
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, StreamSpec, TargetSpec
from engine.streaming.packed_cache import entries
from engine.weights.gguf_file import TYPES
from engine.weights.layout import PAGE_BYTES, UnitLayout
from tests.engine.checkpoints import save_tiny
from tests.engine.gguf_files import Array, Kind, write_gguf
from tests.engine.models import (
    _SCRATCH,
    PLAIN,
    SMALL,
    SUBSPEC,
    VOCAB,
    add_tokenizer,
    exact,
    load,
    model_spec,
    prompt,
    request,
    run,
)
from tests.engine.weights.formats.quantized_files import write
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint, quantize_checkpoint
from tests.variations import variations

BY_NAME = {type_.name: number for number, type_ in TYPES.items()}
BLOCKS = [type_.name for type_ in TYPES.values() if not type_.is_plain]


def usual(name: str, values: Array) -> Kind:
    """Return the types of a file as llama.cpp's quantizer mixes them."""
    if values.ndim == 1:
        return Kind.F32
    if values.shape[-1] % 256:  # rows that are not whole blocks of Q4_K
        return Kind.Q8_0
    return Kind.Q6_K if name == "output.weight" or "ffn_down" in name else Kind.Q4_K


def every(name: str, values: Array) -> Kind:
    """Return one type after the other for the 15 matrices of two layers and the head."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    found = re.fullmatch(r"blk\.(\d)\.(\w+)\.weight", name)
    if found is None or found[2] not in parts:
        return Kind.Q8_0 if name == "output.weight" else Kind.F32
    return Kind(BY_NAME[BLOCKS[(7 * int(found[1]) + parts.index(found[2])) % len(BLOCKS)]])


def only(kind: str) -> Callable[[str, Array], Kind]:
    return lambda name, values: Kind.F32 if values.ndim == 1 else Kind(BY_NAME[kind])


def differing(name: str, values: Array) -> Kind:
    """Return types of which gate and up parts of experts differ."""
    return Kind.Q5_0 if "ffn_up" in name else usual(name, values)


@cache
def gguf(
    family: str, kind: Any = usual, tied: bool | None = None, layers: int = 2, width: int = 4
) -> Path:
    """Return a GGUF file whose rows are whole blocks of every type."""
    folder = (
        Path(_SCRATCH.name) / f"packed-{family}-{getattr(kind, '__name__', kind)}-{tied}-{width}"
    )
    original = save_tiny(
        family,
        folder,
        layers=layers,
        vocab_size=VOCAB,
        width=width,
        tied=tied,
        max_shard_size="1GB",
    )
    types = only(kind) if isinstance(kind, str) else kind
    return write_gguf(original, folder / "model.gguf", types)


def requests() -> list[Generate]:
    return [
        request("greedy", prompt(70), logprobs=2, max_tokens=8),
        request("sampled", prompt(5), temperature=1.0, seed=3, logprobs=0, max_tokens=8),
    ]


def engine(path: Path, packed: bool | None, draft: DraftSpec = PLAIN, **changes: Any) -> Engine:
    stream = StreamSpec(tier=changes.pop("tier", "ram"), slots=2, packed=packed)
    return load(path, draft, stream=stream, memory=MemorySpec(device=512 << 20), **changes)


def answers(path: Path, packed: bool | None, draft: DraftSpec = PLAIN, **changes: Any) -> Any:
    return exact(run(engine(path, packed, draft, **changes), requests()))


def units_of(loaded: Engine) -> Sequence[UnitLayout]:
    return loaded._loaded.stream._layouts


def is_packed(loaded: Engine) -> bool:
    names = {field.name for unit in units_of(loaded) for field in unit.fields}
    return any(not name.endswith(("weight", "bias", "_proj", "sinks")) for name in names)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_type_of_blocks_gives_the_same_bits_packed(dtype: Any) -> None:
    path = gguf("llama", every)
    target = TargetSpec(str(path), dtype=dtype)
    packed, expanded = (engine(path, form, target=target) for form in (True, False))
    names = {field.name.rpartition(".")[2] for unit in units_of(packed) for field in unit.fields}
    assert names == {"weight", *map(str.lower, BLOCKS)}
    assert exact(run(packed, requests())) == exact(run(expanded, requests()))


@pytest.mark.parametrize("draft", [DraftSpec("ngram"), SUBSPEC], ids=["ngram", "subspec"])
@pytest.mark.parametrize("tier", ["resident", "ram", "disk"])
def test_answers_depend_neither_on_the_form_nor_on_tier_and_draft(
    tier: str, draft: DraftSpec
) -> None:
    path = gguf("llama", tied=True)
    expanded, packed = engine(path, False), engine(path, True, draft, tier=tier)
    assert (is_packed(expanded), is_packed(packed)) == (False, True)
    assert exact(run(packed, requests())) == exact(run(expanded, requests()))
    assert packed.info.fingerprint == expanded.info.fingerprint


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_parts_of_a_layer_are_expanded_beside_each_other(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf(family)
    want = answers(path, True)
    monkeypatch.setattr(blueprint, "PART_BYTES", 1)
    assert answers(path, True) == answers(path, False) == want


@pytest.mark.parametrize("slice_bytes", [1, 1 << 30], ids=["sliced", "whole"])
@pytest.mark.parametrize(
    ("family", "kind"),
    [("mixtral", usual), ("mixtral", differing), ("gpt_oss", usual), ("gpt_oss", "MXFP4")],
)
def test_experts_give_the_same_bits_packed(
    family: str, kind: Any, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blueprint, "SLICE_BYTES", slice_bytes)
    path = gguf(family, kind, layers=1)
    assert answers(path, True) == answers(path, False)


def mxfp4(folder: Path) -> None:
    mxfp4_checkpoint(folder)


def nf4(folder: Path) -> None:
    save_tiny("qwen2", folder, layers=2, max_shard_size="1GB")
    quantize_checkpoint(folder, nested=True)


def nf4_experts(folder: Path) -> None:
    save_tiny("qwen3_moe", folder, layers=2, max_shard_size="1GB")
    quantize_checkpoint(folder, nested=False)


@pytest.mark.parametrize("write", [mxfp4, nf4, nf4_experts])
def test_other_packed_formats_give_the_same_bits(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path)
    add_tokenizer(tmp_path)
    found = {packed: engine(tmp_path, packed) for packed in (True, False)}
    assert {packed: is_packed(own) for packed, own in found.items()} == {True: True, False: False}
    assert exact(run(found[True], requests())) == exact(run(found[False], requests()))


# One format for each set of fields: codes of every width, with zeros, an order, a divisor.
SCALED = [
    ("fp8-block-whole", "llama"),
    ("fp8-exponents", "llama"),
    ("ct-int8-group", "llama"),
    ("ct-pack4", "llama"),
    ("ct-pack4-old-zeros-and-order", "llama"),
    ("gptq2-row", "llama"),
    ("gptq8", "llama"),
    ("fp8-block-whole", "deepseek_v3"),
    ("fp8-tensor", "qwen3_moe"),
    ("ct-nvfp4", "qwen3_moe"),
    ("awq", "qwen3_moe"),
    ("gptq4-order", "qwen3_moe"),
]


@pytest.mark.parametrize(("kind", "family"), SCALED)
def test_codes_with_scales_give_the_same_bits_packed(
    kind: str, family: str, tmp_path: Path
) -> None:
    path, _ = write(kind, family, tmp_path)
    add_tokenizer(path)
    found = {packed: engine(path, packed) for packed in (True, False)}
    assert {packed: is_packed(own) for packed, own in found.items()} == {True: True, False: False}
    assert exact(run(found[True], requests())) == exact(run(found[False], requests()))


@pytest.mark.parametrize("tier", ["resident", "disk"])
@pytest.mark.parametrize(("kind", "family"), [("awq", "llama"), ("fp8-block-whole", "qwen3_moe")])
def test_codes_with_scales_give_the_same_bits_in_every_tier(
    kind: str, family: str, tier: str, tmp_path: Path
) -> None:
    path, _ = write(kind, family, tmp_path)
    add_tokenizer(path)
    assert answers(path, True, DraftSpec("ngram"), tier=tier) == answers(path, False)


def test_a_draft_of_packed_layers_is_made_of_their_values(tmp_path: Path) -> None:
    path, _ = write("ct-pack4-asymmetric", "llama", tmp_path)
    add_tokenizer(path)
    assert answers(path, True, SUBSPEC) == answers(path, False)


def test_the_log_and_the_plan_say_what_is_expanded_when_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = write("gptq3", "llama", tmp_path)
    add_tokenizer(path)
    text = "weights are expanded when read: 14 because 3-bit codes do not fill bytes"
    with caplog.at_level("INFO"):
        info = engine(path, None).info
    assert text in caplog.text and text in info.plan
    found = preview(model_spec(path, PLAIN), WhatIf()).assumptions
    assert text in {one.figure for one in found if one.what == "stored weights"}


SCALES_AND_CODES = ("proj.weight", "proj.weight_scale", "proj.weight_scale_inv", "weight_packed")
OTHERS = ("weight_zero_point", "weight_global_scale", "qweight", "qzeros", "scales", "g_idx")


@pytest.mark.parametrize(
    "kind",
    variations(
        [
            "fp8-block-whole",
            "ct-pack4-asymmetric",
            "ct-nvfp4",
            "gptq4-order",
            "fp8-tensor",
            "fp8-channel",
            "ct-int8-group",
            "awq",
            "gptq4",
            "gptq8",
        ],
        quick=["fp8-block-whole", "ct-nvfp4", "gptq4-order"],
    ),
)
def test_the_link_carries_the_bytes_of_codes_and_scales(kind: str, tmp_path: Path) -> None:
    path, _ = write(kind, "llama", tmp_path, width=8)
    add_tokenizer(path)
    (file,) = path.glob("*.safetensors")
    stored = load_file(file)
    endings = ("lm_head.weight", *SCALES_AND_CODES, *OTHERS)
    own = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith(endings))
    packed = sum(unit.nbytes for unit in units_of(engine(path, True)))
    assert packed <= 1.01 * own + 3 * PAGE_BYTES


def test_the_link_carries_the_files_own_bytes() -> None:
    loaded = engine(gguf("llama", width=8), True)
    stream = loaded._loaded.stream
    stream.reset_stats()
    passes = 8
    run(loaded, [request("r", prompt(9), max_tokens=passes)])
    # Slots are filled ahead: those filled before the reset are not counted, and those of the next
    # pass may be.
    ring = 2 * max(unit.nbytes for unit in units_of(loaded))
    own = sum(bytes_of(kind, size) for kind, size in matrices())
    assert passes * own - ring <= stream.stats.bytes <= 1.01 * passes * own + ring


def matrices() -> list[tuple[Kind, int]]:
    """Return type and values of the matrices of the file of `usual` that travel in a pass."""
    hidden, inner, kv = 512, 1024, 256
    layer = [hidden * hidden] * 2 + [kv * hidden] * 2 + [inner * hidden] * 2
    layers = [(Kind.Q4_K, size) for size in layer] + [(Kind.Q6_K, inner * hidden)]
    return [*layers * 2, (Kind.Q6_K, VOCAB * hidden)]


def bytes_of(kind: Kind, values: int) -> int:
    size, nbytes = GGML_QUANT_SIZES[kind]
    return values // size * nbytes


def test_a_file_that_quantize_packs_again_is_not_expanded() -> None:
    path = gguf("llama", "Q8_0")
    target = TargetSpec(str(path), quantize="nf4")
    loaded = engine(path, None, target=target)
    names = {field.name for unit in units_of(loaded) for field in unit.fields}
    assert "self_attn.q_proj.weight.nf4" in names and "weight.q8_0" in names
    assert not any(name.endswith("proj.weight.q8_0") for name in names)


@pytest.mark.parametrize("packed", [True, False])
def test_the_log_and_the_plan_say_how_weights_travel(
    packed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = gguf("llama")
    with caplog.at_level("INFO"):
        info = engine(path, packed).info
    form = "weights travel packed (Q4_K, Q6_K), 0.00 GB a pass, as stream.packed says; expanding"
    if not packed:
        form = "weights (Q4_K, Q6_K) are expanded at load, as stream.packed says"
    assert form in caplog.text and form in info.plan
    spec = model_spec(path, PLAIN, stream=StreamSpec("ram", packed=packed))
    found = preview(spec, WhatIf())
    assert found.has_weights and found.scheme.packed == packed
    stored = {one.what: one for one in found.assumptions}["stored weights"]
    assert stored.figure == "Q4_K, Q6_K" and stored.source.startswith(form)


def test_plan_and_load_choose_the_same_form() -> None:
    path = gguf("llama")
    spec = model_spec(path, PLAIN, memory=MemorySpec(device=512 << 20))
    found, loaded = preview(spec, WhatIf()), engine(path, None)
    assert found.scheme.packed == is_packed(loaded)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("empty_cache")
def test_both_forms_have_the_same_substitutes() -> None:
    path = gguf("llama")
    engine(path, True, SUBSPEC)
    made = {(entry.path, entry.path.stat().st_ino) for entry in entries()}
    engine(path, False, SUBSPEC)
    assert {(entry.path, entry.path.stat().st_ino) for entry in entries()} == made


@pytest.mark.usefixtures("empty_cache")
def test_a_copy_on_disk_is_of_one_form() -> None:
    path = gguf("llama")
    found = []
    for packed in (True, False, True):
        engine(path, packed, tier="disk")
        found.append(sorted(entry.nbytes for entry in entries() if entry.is_packed))
    assert [len(sizes) for sizes in found] == [1, 2, 2]
    assert found[1] == found[2], "neither is made again"


def test_damaged_scales_are_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(gguf("llama").read_bytes())
    raw = bytearray(path.read_bytes())
    whole = raw.find(torch.tensor([1e-3], dtype=torch.float16).numpy().tobytes() * 2)
    raw[whole : whole + 2] = b"\x00\x7c"  # infinity
    path.write_bytes(raw)
    engine(path, True)
    assert "1 scales are NaN or infinite: the file is damaged" in caplog.text


def test_drafts_of_a_small_model_are_dense() -> None:
    draft = DraftSpec("specexec", source=str(gguf("llama")), **SMALL)
    assert answers(gguf("llama"), True, draft) == answers(gguf("llama"), True)
