"""Tests of reading units: they equal what transformers loads, and damage is an error."""

import itertools
import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.errors import ModelError
from engine.weights.open_file import OpenFile
from engine.weights.safetensors import Checkpoint, OtherTensor, StoredRows, StoredTensor
from engine.weights.shards import INDEX_NAME
from engine.weights.units import CheckpointUnits
from tests.engine.checkpoints import FAMILIES, save_tiny


def meta_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    return model


def open_units(folder: Path, dtype: torch.dtype = torch.float32) -> CheckpointUnits:
    return CheckpointUnits(folder, meta_model(folder, dtype), dtype)


def whole(tensor: OtherTensor) -> Tensor:
    return tensor.load() if isinstance(tensor, StoredRows) else tensor


def read_all(units: CheckpointUnits) -> dict[str, Tensor]:
    """Return every tensor of the model by its full name, each unit in memory of its own."""
    tensors = {name: whole(tensor) for name, tensor in units.other_tensors().items()}
    for index, layout in enumerate(units.layouts):
        buffer = torch.empty(layout.nbytes, dtype=torch.uint8)
        units.read(index, buffer)
        views = layout.views(buffer).items()
        tensors |= {f"{layout.name}.{name}": tensor for name, tensor in views}
    return tensors


def assert_equals_transformers(folder: Path, dtype: torch.dtype) -> CheckpointUnits:
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    units = open_units(folder, dtype)
    found = read_all(units)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    return units


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_units_equal_from_pretrained(family: str, tied: bool, tmp_path: Path) -> None:
    save_tiny(family, tmp_path, dtype=torch.bfloat16, tied=tied, layers=2)
    units = assert_equals_transformers(tmp_path, torch.bfloat16)
    assert [layout.name for layout in units.layouts][-2:] == ["model.layers.1", "lm_head"]


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
def test_dtypes_are_converted_as_by_from_pretrained(
    family: str, stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    save_tiny(family, tmp_path, dtype=stored, layers=1)
    assert_equals_transformers(tmp_path, wanted)


def test_a_single_file_without_index_is_read(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=1, max_shard_size="1GB")
    assert not (tmp_path / INDEX_NAME).exists()
    assert_equals_transformers(tmp_path, torch.float32)


def test_a_stored_head_is_used_although_the_config_ties_it(tmp_path: Path) -> None:
    """Some checkpoints are "tied" and still store the head, which transformers then uses."""
    save_tiny("llama", tmp_path, tied=False, layers=1)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    assert_equals_transformers(tmp_path, torch.float32)


def test_routing_corrections_stay_in_float32(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "glm4_moe",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        pad_token_id=0,
    )
    auto: Any = AutoModelForCausalLM
    auto.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    units = assert_equals_transformers(tmp_path, torch.bfloat16)
    kept = [field.name for field in units.layouts[1].fields if field.dtype == torch.float32]
    assert kept == ["mlp.gate.e_score_correction_bias"]


def test_bytes_of_the_wanted_dtype_are_read_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts too: each stored tensor is read directly into its rows of the fused one."""
    save_tiny("mixtral", tmp_path, layers=1)
    units = open_units(tmp_path)

    def no_copy(self: Checkpoint, stored: StoredTensor) -> Tensor:
        raise AssertionError(stored.name)

    monkeypatch.setattr(Checkpoint, "load", no_copy)
    for index, layout in enumerate(units.layouts):
        units.read(index, torch.empty(layout.nbytes, dtype=torch.uint8))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_an_embedding_of_the_wanted_dtype_stays_in_its_file(
    stored: torch.dtype, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, dtype=stored, layers=1)
    embedding = open_units(tmp_path).other_tensors()["model.embed_tokens.weight"]
    assert isinstance(embedding, StoredRows) == (stored == torch.float32)
    if isinstance(embedding, StoredRows):
        assert torch.equal(embedding.read([5, 0, 127]), embedding.load()[[5, 0, 127]])
        for row in (-1, 128):
            with pytest.raises(IndexError, match="128 rows"):
                embedding.read([0, row])
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "no file is mapped"


def test_a_closed_checkpoint_is_never_read(tmp_path: Path) -> None:
    """Another file may get the number of a descriptor that was closed."""
    save_tiny("llama", tmp_path, layers=1)
    units = open_units(tmp_path)
    embedding = units.other_tensors()["model.embed_tokens.weight"]
    units.close()
    others = [(tmp_path / "config.json").open() for _ in range(8)]
    assert isinstance(embedding, StoredRows)
    with pytest.raises(ModelError, match=r"safetensors: read after it was closed"):
        embedding.read([0])
    for other in others:
        other.close()


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"other weights")


def shrink(path: Path) -> None:
    os.truncate(path, 1000)


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [(overwrite, "the file was changed.*Restart"), (shrink, "ends at .*was truncated")],
)
def test_a_file_that_changes_while_it_is_open_is_refused(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=1, max_shard_size="1GB")
    units = open_units(tmp_path)
    embedding = units.other_tensors()["model.embed_tokens.weight"]
    change(tmp_path / "model.safetensors")
    buffer = torch.empty(units.layouts[0].nbytes, dtype=torch.uint8)
    reads: list[Callable[[], object]] = [lambda: units.read(0, buffer)]
    if isinstance(embedding, StoredRows):
        reads += [lambda: embedding.read([0]), embedding.load]
    assert len(reads) == 3
    for read in reads:
        with pytest.raises(ModelError, match=r"model\.safetensors: " + message):
            read()


@pytest.mark.parametrize("change", [replace, os.unlink])
def test_an_open_file_is_read_although_its_name_is_gone(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=1, max_shard_size="1GB")
    units = open_units(tmp_path)
    before = read_all(units)
    change(tmp_path / "model.safetensors")
    after = read_all(units)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_units_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    save_tiny("qwen3_moe", tmp_path, layers=4)
    units = open_units(tmp_path)
    expected = read_all(units)
    wrong: list[str] = []

    def walk(start: int) -> None:
        for step in range(20):
            index = (start + step) % len(units.layouts)
            layout = units.layouts[index]
            buffer = torch.empty(layout.nbytes, dtype=torch.uint8)
            units.read(index, buffer)
            wrong.extend(
                name
                for name, tensor in layout.views(buffer).items()
                if not torch.equal(tensor, expected[f"{layout.name}.{name}"])
            )

    threads = [threading.Thread(target=walk, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Damage. Each function breaks a llama checkpoint of several shards in one way.


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weight_map(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
    return found


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None], tensor: str) -> None:
    """Change the tensors of the shard that holds `tensor`, and the index with it."""
    shard = weight_map(folder)[tensor]
    tensors = load_file(folder / shard)
    change(tensors)
    save_file(tensors, folder / shard)
    others = {name: file for name, file in weight_map(folder).items() if file != shard}
    edit_json(folder / INDEX_NAME, weight_map=others | dict.fromkeys(tensors, shard))


NORM = "model.layers.1.input_layernorm.weight"


def drop_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.__delitem__(NORM), NORM)


def add_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update(stray=torch.zeros(2)), NORM)


def wrong_shape(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({NORM: torch.zeros(65)}), NORM)


def wrong_dtype(folder: Path) -> None:
    change = {NORM: torch.zeros(64, dtype=torch.int8)}
    rewrite(folder, lambda tensors: tensors.update(change), NORM)


def unscaled_float8(folder: Path) -> None:
    change = {NORM: torch.zeros(64).to(torch.float8_e4m3fn)}
    rewrite(folder, lambda tensors: tensors.update(change), NORM)


def drop_shard(folder: Path) -> None:
    (folder / weight_map(folder)[NORM]).unlink()


def truncate_shard(folder: Path) -> None:
    shard = folder / weight_map(folder)[NORM]
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size - 1)


def empty_shard(folder: Path) -> None:
    (folder / weight_map(folder)[NORM]).write_bytes(b"")


def corrupt_header(folder: Path) -> None:
    shard = folder / weight_map(folder)[NORM]
    data = bytearray(shard.read_bytes())
    data[8] = ord("x")
    shard.write_bytes(data)


def corrupt_header_length(folder: Path) -> None:
    shard = folder / weight_map(folder)[NORM]
    shard.write_bytes(struct.pack("<Q", 1 << 60) + shard.read_bytes()[8:])


def corrupt_offsets(folder: Path) -> None:
    shard = folder / weight_map(folder)[NORM]
    data = shard.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    begin, end = header[NORM]["data_offsets"]
    header[NORM]["data_offsets"] = [begin, end + 4]
    text = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def index_without_entry(folder: Path) -> None:
    entries = {name: file for name, file in weight_map(folder).items() if name != NORM}
    edit_json(folder / INDEX_NAME, weight_map=entries)


def index_with_wrong_file(folder: Path) -> None:
    entries = weight_map(folder)
    entries[NORM] = next(file for file in entries.values() if file != entries[NORM])
    edit_json(folder / INDEX_NAME, weight_map=entries)


def index_outside_the_folder(folder: Path) -> None:
    edit_json(folder / INDEX_NAME, weight_map=weight_map(folder) | {NORM: "../other.safetensors"})


def corrupt_index(folder: Path) -> None:
    (folder / INDEX_NAME).write_text("{")


def only_pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_tensor, f"no tensor for {NORM} of LlamaForCausalLM"),
        (add_tensor, "unexpected tensor stray"),
        (wrong_shape, rf"{NORM} has shape \[65\].* needs \[64\]"),
        (wrong_dtype, f"{NORM} has dtype torch.int8"),
        (unscaled_float8, f"{NORM} has dtype torch.float8_e4m3fn"),
        (drop_shard, r"model-0000\d-of-.*it is not there"),
        (truncate_shard, r"model-0000\d-of-.*truncated"),
        (empty_shard, r"model-0000\d-of-.*0 bytes"),
        (corrupt_header, r"model-0000\d-of-.*corrupt safetensors header"),
        (corrupt_header_length, r"model-0000\d-of-.*corrupt safetensors header \(length"),
        (corrupt_offsets, r"model-0000\d-of-.*corrupt safetensors header"),
        (index_without_entry, f"no tensor for {NORM} of LlamaForCausalLM"),
        (index_with_wrong_file, f"says that {NORM} is in .* does not hold it"),
        (index_outside_the_folder, "'../other.safetensors', not a file name"),
        (corrupt_index, "index.json: corrupt"),
        (only_pickles, "Only safetensors"),
    ],
)
def test_the_error_of_damage_names_the_file_or_tensor(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=2)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        open_units(tmp_path)


def test_the_error_of_a_missing_expert_names_it(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path, layers=1)
    name = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    rewrite(tmp_path, lambda tensors: tensors.__delitem__(name), name)
    with pytest.raises(ModelError, match=r"3 tensors \*.*w3.weight for the 4 experts"):
        open_units(tmp_path)


def test_the_error_of_an_expert_of_another_shape_names_it(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path, layers=1)
    name = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.zeros(96, 63)}), name)
    with pytest.raises(ModelError, match=r"experts.2.w3.weight has shape \[96, 63\]"):
        open_units(tmp_path)


def test_tensors_that_the_index_leaves_out_or_places_elsewhere_are_not_read(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=2)
    index, want = weight_map(tmp_path), read_all(open_units(tmp_path))
    other = next(name for name in index if index[name] != index[NORM])
    rewrite(tmp_path, lambda tensors: tensors.update({"stray": torch.zeros(4)}), NORM)
    rewrite(tmp_path, lambda tensors: tensors.update({NORM: torch.zeros(7)}), other)
    edit_json(tmp_path / INDEX_NAME, weight_map=index)
    found = read_all(open_units(tmp_path))
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())


def test_old_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=2)
    stray = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    rewrite(tmp_path, lambda tensors: tensors.update(stray), NORM)
    assert_equals_transformers(tmp_path, torch.float32)


def test_a_file_that_shrinks_while_serving_is_an_error(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=2, tied=True)
    units = open_units(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        with open(path, "r+b") as file:
            file.truncate(100)
    layout = units.layouts[0]
    with pytest.raises(ModelError, match=r"safetensors: ends at .* truncated"):
        units.read(0, torch.empty(layout.nbytes, dtype=torch.uint8))


def test_closing_twice_closes_all_files(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=1)
    checkpoint = Checkpoint(tmp_path)
    assert _open_files(tmp_path)
    checkpoint.close()
    checkpoint.close()
    assert not _open_files(tmp_path)


def _open_files(folder: Path) -> list[Path]:
    """Return the files of a folder that this process has open."""
    opened = (path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return [path for path in opened if path.is_relative_to(folder)]


def flip_reads(monkeypatch: pytest.MonkeyPatch, number: Callable[[int], bool]) -> None:
    """Flip a bit of each read whose number is chosen, from 0 on."""
    read, count = OpenFile.read, itertools.count()

    def flipping(file: OpenFile, memory: memoryview, offset: int) -> None:
        read(file, memory, offset)
        if number(next(count)):
            memory[len(memory) // 2] ^= 16

    monkeypatch.setattr(OpenFile, "read", flipping)


def test_a_bit_that_flips_in_a_later_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny("llama", tmp_path, layers=1)
    units = open_units(tmp_path)
    memory = [torch.zeros(units.layouts[0].nbytes, dtype=torch.uint8) for _ in range(2)]
    units.read(0, memory[0])
    flip_reads(monkeypatch, lambda number: number in (0, 5))
    units.read(0, memory[1])
    assert torch.equal(*memory)
    assert caplog.text.count("rightly when they were read again") == 2


def test_bytes_that_stay_different_from_the_first_read_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny("llama", tmp_path, layers=1)
    units = open_units(tmp_path)
    memory = torch.zeros(units.layouts[0].nbytes, dtype=torch.uint8)
    with monkeypatch.context() as patched:
        flip_reads(patched, lambda number: number == 0)
        units.read(0, memory)
    with pytest.raises(ModelError, match=r"safetensors: \d+ bytes at \d+ are not what.*at first"):
        units.read(0, memory)
