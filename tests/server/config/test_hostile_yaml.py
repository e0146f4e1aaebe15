"""YAML that was made to harm, or says a thing twice, is an error that names file and line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.cli.serve import open_registry
from server.config.files import ConfigError, parse_size, read_yaml
from server.config.model_file import read_model_file
from server.config.settings import Settings, load_settings

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
HEAD = "target: {source: org/m}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("port: 1\nhost: a\nport: 2\n", r"the key 'port' is there twice, first in line 1.*line 3"),
        ("a: {b: 1, b: 2}\n", "the key 'b' is there twice.*line 1"),
        (BOMB, "anchors and aliases.*line 1"),
        ("a: *b\n", "anchors and aliases"),
        ("<<: {port: 1}\n", "this key is no text.*line 1"),
        ("1: 2\n", "this key is no text"),
        ("on: 2\n", "this key is no text"),
        ("[a]: 2\n", "this key is no text"),
        ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        ("a: !own b\n", "could not determine a constructor"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than 32 deep"),
        ("a: " + "[" * 100_000, "nested more than 32 deep"),
        ("".join(" " * i + f"a{i}:\n" for i in range(400)), "nested more than 32 deep"),
        ("a: 2020-99-99\n", "month must be in 1..12"),
        ("a: " + "9" * 10_000, "cannot be read"),
        ("a: \x1b[2J\n", "cannot be read"),
        ("a: 1\n---\nb: 2\n", "expected a single document .*another.*line 2, column 1"),
        ("a: {b: c\n d: : x\n", r"line 2, column 3\), while .* that begins in line 1$"),
        ("a: b: c\n", r"mapping values are not allowed here \(line 1, column 5\)$"),
        ("- 1\n", "expected keys and values, found list"),
        ("a: " + "b" * (1 << 20), "bytes; files of this kind are read up to"),
    ],
)
def test_what_is_no_plain_mapping_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "understudy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){reason}") as caught:
        read_yaml(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ") and "\x1b" not in told and "\n" not in told


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, lambda p: p.symlink_to(p.name), lambda p: p.symlink_to("/dev/zero")],
)
def test_what_is_no_file_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: "):
        read_yaml(tmp_path / "a.yaml")


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "understudy.yaml").write_bytes("\ufeffport: 1\n".encode())
    assert load_settings([tmp_path], {}, {}).port == 1


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("target: {source: '\\0'}\n".replace("'", '"'), "target.source"),
        ("target: {source: '~nobody-here/x'}\n", "target.source"),
        ("target: {source: " + "a" * 5000 + "}\n", "target.source"),
        ("target: {source: ./loop}\n", "target.source"),
        (HEAD + "memory: {device: " + "9" * 400 + "GiB}\n", "memory.device"),
        (HEAD + "memory: {device: .nan}\n", "memory.device"),
        (HEAD + "sampling: {temperature: .nan}\n", "sampling.temperature"),
        (HEAD + "sampling: {repetition_penalty: .nan}\n", "sampling.repetition_penalty"),
        (HEAD + "sampling: {presence_penalty: .inf}\n", "sampling.presence_penalty"),
        (HEAD + "audit: .nan\n", "audit"),
        (HEAD + "stream: {simulate_gbps: 1e999}\n", "stream.simulate_gbps"),
        (HEAD + "chat_template: '{% for'\n", "chat_template"),
        (HEAD + "chat_template: gone.jinja\n", "chat_template"),
        (HEAD + "chat_template: pipe.jinja\n", "chat_template"),
        (HEAD + "chat_template: " + "a" * 5000 + ".jinja\n", "chat_template"),
    ],
)
def test_a_hostile_value_is_told_with_its_key(text: str, key: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jinja")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_model_file(tmp_path / "m.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'm.yaml'}: {key}")
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("template", "reason"),
    [(b"{% for", r"bad\.jinja: not a Jinja template: line 1"), (b"\xff", "not UTF-8")],
)
def test_a_template_file_that_is_none_is_named(
    template: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.jinja").write_bytes(template)
    (tmp_path / "m.yaml").write_text(HEAD + "chat_template: bad.jinja\n")
    with pytest.raises(ConfigError, match=reason):
        read_model_file(tmp_path / "m.yaml")


def test_a_size_of_too_many_digits_is_none() -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size("9" * 400)


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "x.bin"])
def test_a_model_that_is_no_folder_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").touch()
    reason = (
        "is a file, but no .*Give a GGUF file" if name == "x.bin" else "is neither a known model"
    )
    with pytest.raises(ConfigError, match=reason):
        open_registry([], Settings(default_model=name))
