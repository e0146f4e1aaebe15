"""Damaged and hostile GGUF files are refused by name, in bounded time and memory."""

import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ModelError
from engine.weights import gguf_file
from engine.weights.checkpoints import open_checkpoint
from engine.weights.gguf_file import Header, read_header
from engine.weights.hub import resolve
from engine.weights.open_file import OpenFile
from engine.weights.shards import has_weights
from tests.engine.checkpoints import save_tiny
from tests.engine.gguf_files import rewrite, state_of, write_gguf, write_keys

TEXT, LIST, U32 = 8, 9, 4


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"w", shape: tuple[int, ...] = (4,), kind: int = 0, at: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)


def header(held: list[bytes], infos: list[bytes], data: int = 64, **changed: Any) -> bytes:
    """Return a file with these entries, whose counts and version may be changed."""
    start = {"magic": b"GGUF", "version": 3, "tensors": len(infos), "keys": len(held), **changed}
    first = struct.pack("<4sIQQ", *(start[k] for k in ("magic", "version", "tensors", "keys")))
    whole = first + b"".join(held) + b"".join(infos)
    return whole + bytes(-len(whole) % 32 + data)


def read(path: Path, content: bytes) -> Header:
    path.write_bytes(content)
    return read_header(OpenFile(path))


GOOD_KEYS = [key(b"general.name", TEXT, text(b"x")), key(b"n", U32, struct.pack("<I", 7))]


def test_a_good_file_is_read(tmp_path: Path) -> None:
    keys = [*GOOD_KEYS, key(b"list", LIST, struct.pack("<IQ2i", 5, 2, -1, 3))]
    found = read(tmp_path / "a.gguf", header(keys, [tensor(), tensor(b"v", (32, 2), 8, 32)], 128))
    assert found.metadata == {"general.name": "x", "n": 7, "list": [-1, 3]}
    assert [(t.name, t.shape, t.type.name, t.nbytes) for t in found.tensors] == [
        ("w", (4,), "F32", 16),
        ("v", (2, 32), "Q8_0", 68),
    ]


def listed(kind: int, count: int, values: bytes = b"") -> bytes:
    return key(b"k", LIST, struct.pack("<IQ", kind, count) + values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file ends in its first bytes"),
        (b"GG", "the file ends in its first bytes"),
        (b"PK\3\4" + bytes(40), "not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (header([], [], version=1), "GGUF version 1 is not read"),
        (header([], [], version=3 << 24), "a big-endian GGUF file is not read"),
        (header([], [], keys=1 << 60), "keys; 4096 are the most"),
        (header([], [], tensors=1 << 60), "tensors; 100000 are the most"),
        (header([], [tensor()], tensors=90_000), "0 dimensions"),
        (header([key(b"k", 77, b"")], []), "the value of 'k' has type 77"),
        (header([key(b"k", TEXT, struct.pack("<Q", 1 << 62))], []), "4194304 are the most"),
        (header([key(b"k", TEXT, struct.pack("<Q", 1 << 20))], []), "the file ends in the value"),
        (header([key(b"k", TEXT, text(b"\xff\xfe"))], []), "the value of 'k' is not UTF-8"),
        (header([key(b"x" * 600, U32, bytes(4))], []), "the name of key 0 has 600 bytes"),
        (header([listed(U32, 1 << 61)], []), "arrays may have 2097152 in all"),
        (header([listed(U32, 1 << 20)], []), "the file ends in the value of 'k'"),
        (header([listed(TEXT, 1 << 20)], []), "the file ends in the value of 'k'"),
        (header([listed(LIST, 1, bytes(12))], []), "has type 9, which is not supported"),
        (header([GOOD_KEYS[1], GOOD_KEYS[1]], []), "the key 'n' is there twice"),
        *(
            (
                header([key(b"general.alignment", U32, struct.pack("<I", n))], []),
                f"is {n}, no power",
            )
            for n in (0, 24, 1 << 31)
        ),
        (header([key(b"general.alignment", TEXT, text(b"32"))], []), "is '32', no power of two"),
        (header([], [tensor(shape=())]), "'w' has 0 dimensions"),
        (header([], [tensor(shape=(1,) * 5)]), "'w' has 5 dimensions"),
        (header([], [tensor(shape=(0, 4))]), "'w' has shape"),
        (header([], [tensor(shape=(33,), kind=8)]), "'w' has shape .* of type Q8_0"),
        (header([], [tensor(shape=(1 << 60, 1 << 60))]), "truncated: w ends at"),
        (header([], [tensor(shape=(1 << 20,))]), "truncated: w ends at"),
        (header([], [tensor(at=1 << 62)]), "truncated: w ends at"),
        (header([], [tensor(at=8)]), "'w' begins at 8, not aligned"),
        (header([], [tensor(), tensor(b"v")]), "shares its bytes with another"),
        (header([], [tensor(), tensor(at=32)]), "two tensors have the same name"),
        (header([], [tensor(kind=16)]), "w has type IQ2_XXS, which is not read.*Q4_K"),
        (
            header([], [tensor(kind=999)]),
            "w has type number 999, which is not known. Download the file again",
        ),
    ],
)
def test_a_wrong_header_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    with pytest.raises(ModelError, match=message) as caught:
        read(path, content)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    keys = [*GOOD_KEYS, listed(TEXT, 2, text(b"a") + text(b"b"))]
    whole = header(keys, [tensor(), tensor(b"v", at=32)], data=48)
    read(tmp_path / "whole.gguf", whole)
    for length in range(len(whole)):
        with pytest.raises(ModelError, match=r"cut\.gguf.*Download the file again"):
            read(tmp_path / "cut.gguf", whole[:length])


def test_a_byte_that_is_changed_never_raises_anything_else(tmp_path: Path) -> None:
    whole = header([*GOOD_KEYS, listed(U32, 1, bytes(4))], [tensor()], data=16)
    refused = 0
    for place in range(len(whole)):
        for value in (0, 0x7F, 0xFF):
            try:
                read(tmp_path / "a.gguf", whole[:place] + bytes([value]) + whole[place + 1 :])
            except ModelError:
                refused += 1
    assert refused > len(whole)


def test_a_header_takes_no_more_memory_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "MAX_HEADER_BYTES", 1 << 12)
    with pytest.raises(ModelError, match="more than 4096 bytes of header"):
        read(tmp_path / "a.gguf", header([key(b"k", TEXT, text(bytes(5000)))], []))


# Whole models

PROJECTOR = {"general.architecture": "clip", "general.type": "mmproj"}
ADAPTER = {"general.architecture": "llama", "general.type": "adapter"}


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(path), None, lambda *_: None)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (PROJECTOR, r"a projector \(mmproj\).*Give the file of the model itself"),
        (ADAPTER, "a LoRA adapter, not a whole model. Merge it"),
        (
            {"general.architecture": "mamba"},
            "general.architecture 'mamba' is not supported as GGUF",
        ),
        (
            {"general.architecture": "qwen35"},
            "general.architecture 'qwen35' is not supported as GGUF.*Use the safetensors",
        ),
        ({"general.architecture": "llama"}, "no matrix token_embd.weight"),
    ],
)
def test_files_that_are_not_models_are_refused_by_name(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(write_keys(tmp_path / "other.gguf", keys), message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_count": "many"}, "llama.block_count: an integer is expected, found 'many'"),
        ({"block_count": 100_000}, "llama.block_count: 100000 is out of range"),
        (
            {"embedding_length": None},
            "llama.embedding_length: an integer is expected, it is missing",
        ),
        ({"attention.head_count": [4, 2]}, "llama.attention.head_count: an integer is expected"),
        ({"attention.head_count": 0}, "llama.attention.head_count: 0 is out of range"),
        (
            {"attention.value_length": 3},
            "llama.attention.value_length: the value of attention.key_",
        ),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count: the width of a head"),
        ({"rope.scaling.type": "spiral"}, "llama.rope.scaling.type: none, linear or yarn"),
        ({"rope.freq_base": float("nan")}, "llama.rope.freq_base: a finite number is expected"),
        ({"rope.freq_base": 0.0}, "llama.rope.freq_base: a number above 0 is expected, found 0.0"),
        ({"attention.layer_norm_rms_epsilon": True}, "epsilon: a number is expected, found True"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused_by_file_and_key(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {
        "context_length": 64,
        "embedding_length": 8,
        "block_count": 1,
        "feed_forward_length": 16,
        "attention.head_count": 2,
        "attention.key_length": 8,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys = {f"llama.{k}": v for k, v in (keys | changed).items() if v is not None}
    keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"] = "gpt2", "gpt-2"
    keys["tokenizer.ggml.tokens"] = ["a", "b"]
    embedding = {"token_embd.weight": np.zeros((2, 8), dtype=np.float32)}
    refused(write_keys(tmp_path / "m.gguf", keys, embedding), message)


def drop_a_part(parts: list[Path]) -> None:
    parts[1].unlink()


def swap_parts(parts: list[Path]) -> None:
    whole = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(whole)


def repeat_a_part(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[1].read_bytes())


def cut_a_part(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[2].read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_part, "m-00002-of-0000.*is not there, and m-00001-of-"),
        (swap_parts, "m-00002-of-.*is part 2 of"),
        (repeat_a_part, "a tensor is in two parts"),
        (cut_a_part, "m-00003-of-.*truncated"),
    ],
)
def test_parts_that_are_not_one_model_are_refused(
    damage: Callable[[list[Path]], None], message: str, tmp_path: Path
) -> None:
    parts = write_parts(tmp_path)
    damage(parts)
    with pytest.raises(ModelError, match=message):
        resolve(str(parts[0]), None, lambda *_: None)


def write_parts(folder: Path) -> list[Path]:
    original = save_tiny("llama", folder / "original", layers=2)
    write_gguf(original, folder / "m.gguf", split_max_tensors=8)
    return sorted(folder.glob("m-*.gguf"))


def test_a_file_that_changes_after_it_was_resolved_is_refused(tmp_path: Path) -> None:
    path = write_gguf(save_tiny("llama", tmp_path / "original", layers=1), tmp_path / "m.gguf")
    folder = resolve(str(path), None, lambda *_: None).folder
    opened = open_checkpoint(folder)
    stored = opened.tensors["output_norm.weight"]
    opened.load(stored)
    path.write_bytes(path.read_bytes())  # the same bytes at another time
    with pytest.raises(ModelError, match=r"m\.gguf: the file was changed after"):
        opened.load(stored)
    with pytest.raises(ModelError, match=r"m\.gguf: was changed or removed. Load the model again"):
        open_checkpoint(folder)
    assert resolve(str(path), None, lambda *_: None).folder != folder


def test_a_large_vocabulary_takes_bounded_memory(tmp_path: Path) -> None:
    tokens = b"".join(text(b"%d" % number) for number in range(300_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read(tmp_path / "a.gguf", header([listed(TEXT, 300_000, tokens)], []))
    assert found.metadata["k"][-1] == "299999"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_folder_outside_the_cache_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    path = write_gguf(save_tiny("llama", tmp_path / "original", layers=1), tmp_path / "m.gguf")
    made = resolve(str(path), None, lambda *_: None).folder
    copy = shutil.copytree(made, tmp_path / "copy")
    assert has_weights(made) and not has_weights(copy)
    with pytest.raises(ModelError, match=r"no \*\.safetensors file"):
        resolve(str(copy), None, lambda *_: None)


def test_a_checkpoint_that_only_claims_to_be_gguf_is_refused(tmp_path: Path) -> None:
    original = save_tiny("llama", tmp_path, layers=1)
    values = json.loads((original / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gguf"}
    (original / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="the weights are no GGUF files"):
        state_of(original)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("ffn_gate_exps.weight", (4,)), ("ffn_gate_exps.bias", (4, 95)), ("ffn_gate_exps.bias", (4,))],
)
def test_experts_of_a_wrong_shape_are_refused(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    original = save_tiny("mixtral", tmp_path / "original", layers=1)

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"blk.0.{name}"] = np.zeros(shape, dtype=np.float32)

    path = write_gguf(original, tmp_path / "m.gguf")
    refused(
        rewrite(path, tmp_path / "n.gguf", {}, change),
        rf"n\.gguf: blk\.0\.{name} has shape .* by llama\.",
    )
