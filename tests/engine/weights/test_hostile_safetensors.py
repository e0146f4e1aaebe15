"""Tests of malicious safetensors headers and indexes: the error names the file."""

import json
import logging
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.messages import Failed
from engine.runtime.engine import Engine
from engine.weights.formats import bitsandbytes
from engine.weights.safetensors import MAX_HEADER_BYTES, Checkpoint
from engine.weights.shards import INDEX_NAME, MOST_FILES, SINGLE_NAME, read_index
from tests.engine.checkpoints import save_tiny
from tests.engine.models import PLAIN, SUBSPEC, add_tokenizer, load, prompt, request

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(folder: Path, header: bytes, data: int = 64, length: int | None = None) -> None:
    size = struct.pack("<Q", len(header) if length is None else length)
    (folder / SINGLE_NAME).write_bytes(size + header + bytes(data))


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-8, 0]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, 8, 16]},
        {"data_offsets": [0]},
        {"data_offsets": [0.0, 8.0]},
        {"data_offsets": [False, 8]},
        {"data_offsets": "08"},
        {"data_offsets": None},
        {"data_offsets": [0, 4]},
        {"data_offsets": [100, 108]},
        {"data_offsets": [10**30, 10**30 + 8]},
        {"shape": [10**18]},
        {"shape": [10**18, 10**18]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": "2"},
        {"shape": {"2": 2}},
        {"shape": [[2]]},
        {"dtype": "F31"},
        {"dtype": ["F32"]},
        {"dtype": None},
    ],
    ids=str,
)
def test_a_header_entry_that_is_not_a_tensor_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, json.dumps({"good": GOOD, "bad": {**GOOD, "shape": [0], **change}}).encode())
    with pytest.raises(ModelError, match="bad") as caught:
        Checkpoint(tmp_path)
    assert str(tmp_path / SINGLE_NAME) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "corrupt safetensors header: not valid JSON"),
        (b"[]", "corrupt safetensors header: a JSON object"),
        (b"null", "corrupt safetensors header: a JSON object"),
        (b'{"a": 1}', "a: an object is expected"),
        (b'{"a": []}', "a: an object is expected"),
        (b'{"\xff": 1}', "not UTF-8"),
        (b"[" * 1_000_000, "nested more than"),
        (b"\0" * 1_000_000, "not valid JSON"),
        (b'{"a": {}, "a": {}}', "the key 'a' is there twice"),
        (b'{"' + b"a" * 10_000 + b'": {}}', "a name of 10000 characters"),
        (json.dumps({"a": GOOD, "b": GOOD}).encode(), "b: shares its bytes"),
        (
            json.dumps({"a": GOOD, "b": {**GOOD, "data_offsets": [4, 12]}}).encode(),
            "b: shares its bytes",
        ),
        (  # one of no bytes lies between them
            json.dumps(
                {
                    "a": GOOD,
                    "b": {**GOOD, "data_offsets": [5, 13]},
                    "c": {**GOOD, "shape": [0], "data_offsets": [4, 4]},
                }
            ).encode(),
            "b: shares its bytes",
        ),
    ],
)
def test_the_error_of_a_bad_header_names_the_file(
    header: bytes, reason: str, tmp_path: Path
) -> None:
    write(tmp_path, header)
    with pytest.raises(ModelError, match=rf"{SINGLE_NAME}: .*{reason}"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "state",
    [
        {"blocksize": 0},
        {"blocksize": 64.0},
        {"shape": 4096},
        {"shape": []},
        {"shape": [10**12, 1]},
        {"nested_blocksize": 10**12},
        {"nested_offset": float("nan")},
    ],
    ids=str,
)
def test_an_invalid_quant_state_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    sound = {"blocksize": 64, "shape": [8, 16]}
    text = bytearray(json.dumps(sound | state).encode())
    tensors = {
        "w.weight": torch.zeros(64, 1, dtype=torch.uint8),
        "w.weight.absmax": torch.zeros(2),
        "w.weight.quant_state.bitsandbytes__nf4": torch.frombuffer(text, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / SINGLE_NAME)
    with pytest.raises(ModelError, match=rf"{SINGLE_NAME}: w\.weight.*: unreadable"):
        bitsandbytes.find(Checkpoint(tmp_path), {})


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, b"{}", data=64, length=MAX_HEADER_BYTES + 1)
    with open(tmp_path / SINGLE_NAME, "r+b") as file:
        file.truncate(1 << 40)  # takes no disk
    with pytest.raises(ModelError, match=r"corrupt safetensors header \(length"):
        Checkpoint(tmp_path)


def test_the_error_of_a_git_lfs_pointer_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / SINGLE_NAME).write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(ModelError, match="Git LFS pointer"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["../a", "/etc/passwd", "a/b", ".", "..", "", "a" * 5000, 5])
def test_an_index_cannot_name_files_of_other_folders(file: object, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"\x1b[2J": file}}))
    with pytest.raises(ModelError, match="not a file name") as caught:
        read_index(tmp_path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["\0", "pipe", "folder", "\ud800"])
def test_an_index_entry_that_is_not_a_regular_file_is_missing(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    (tmp_path / "folder").mkdir()
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="it is not there"):
        Checkpoint(tmp_path)


def test_an_index_of_too_many_files_or_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    many = {str(i): str(i) for i in range(MOST_FILES + 1)}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": many}))
    with pytest.raises(ModelError, match=f"{MOST_FILES} are the most"):
        read_index(tmp_path)
    (tmp_path / INDEX_NAME).write_text('{"weight_map": {"a": "b", "a": "c"}}')
    with pytest.raises(ModelError, match="the key 'a' is there twice"):
        read_index(tmp_path)


def spoiled(folder: Path, tensor: str, value: float) -> Path:
    save_tiny("llama", folder, max_shard_size="1GB")
    add_tokenizer(folder)
    tensors = load_file(folder / SINGLE_NAME)
    tensors[tensor].view(-1)[5] = value
    save_file(tensors, folder / SINGLE_NAME)
    return folder


def outcome(engine: Engine, **params: Any) -> Any:
    engine.add(request("a", prompt(5), **{"max_tokens": 3, **params}))
    events = [event for _ in range(20) if engine.has_work() for event in engine.step()]
    assert not engine.has_work()
    return events[-1]


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("model.layers.1.mlp.down_proj.weight", float("nan")),
        ("model.layers.1.mlp.down_proj.weight", float("inf")),
        ("lm_head.weight", float("nan")),
    ],
)
def test_nan_and_infinite_weights_are_logged_and_fail_requests(
    tensor: str, value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No request is answered with the token that such values give, which is always the lowest."""
    engine = load(spoiled(tmp_path, tensor, value), SUBSPEC)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    (told,) = [text for text in warnings if "NaN or infinite" in text]
    assert tensor in told and ": 1 weights" in told and str(tmp_path) in told
    for params in (
        {},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.0, "top_p": 0.9},
        {"logprobs": 2},
        {"prompt_logprobs": 1, "max_tokens": 0},
        {"repetition_penalty": 1.2},
    ):
        failed = outcome(engine, **params)
        assert isinstance(failed, Failed) and failed.code == "logits_not_finite", params


def test_finite_weights_log_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny("llama", tmp_path, dtype=torch.bfloat16)
    add_tokenizer(folder)
    load(folder, PLAIN)
    assert "NaN" not in caplog.text
