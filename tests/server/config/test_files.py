"""Settings, model files, the registry, keys: what is read and how mistakes are told."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.messages import ModelInfo
from engine.spec import DraftSpec, MemorySpec, RopeSpec, StreamSpec, TargetSpec
from engine.weights.generation_config import RANGES
from server.config.files import ConfigError, packaged_folder, parse_size, search_path
from server.config.model_file import ParsersSection, SamplingSection
from server.config.registry import (
    ModelEntry,
    Registry,
    entry_yaml,
    make_entry,
    read_entries,
    read_entry,
)
from server.config.settings import Settings, load_settings
from server.http.auth import is_loopback

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def loaded(method: str, sampling: tuple[tuple[str, float], ...] = ()) -> ModelInfo:
    """Return the properties of a loaded model that drafts with this method."""
    return ModelInfo(
        model_id="m",
        vocab_size=100,
        context_length=100,
        capacity_tokens=100,
        max_sequences=1,
        eos_token_ids=(),
        numerics="strict",
        fingerprint="us-1",
        tokenizer_path="",
        plan="",
        draft_method=method,
        sampling=sampling,
    )


def read(path: Path) -> ModelEntry:
    return read_entry(path, path.stem)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GiB", 8 * 2**30), ("500 MB", 5 * 10**8), ("1.5kib", 1536), ("7", 7), ("2b", 2)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "8 gigs", "-1GiB", "1e3", "8GiB!", "\uff18GiB", "\u0668"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_command_line_over_environment_over_file(write: Write, tmp_path: Path) -> None:
    write("understudy.yaml", "port: 1\nhost: a\nkeepalive: 3\nmax_body_bytes: 2MiB\n")
    env = {"UNDERSTUDY_PORT": "2", "UNDERSTUDY_HOST": "b", "UNDERSTUDY_STRICT_MODEL": "false"}
    settings = load_settings([tmp_path], env, {"port": 3, "host": None})
    assert (settings.port, settings.host, settings.keepalive) == (3, "b", 3.0)
    assert settings.max_body_bytes == 2 * 2**20
    assert settings.strict_model is False


def test_hosts_and_origins_of_pages() -> None:
    env = {"UNDERSTUDY_ALLOWED_HOSTS": "llm.example.com, *", "UNDERSTUDY_CORS_ORIGINS": "file://"}
    settings = load_settings([], env, {})
    assert settings.allowed_hosts == ("llm.example.com", "*")
    assert settings.cors_origins == ("file://",)


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    assert load_settings([tmp_path], {}, {}) == Settings()


def test_the_shipped_settings_are_the_defaults() -> None:
    assert load_settings([packaged_folder()], {}, {}) == Settings()


def test_the_first_settings_file_is_the_only_one(write: Write, tmp_path: Path) -> None:
    write("one/understudy.yaml", "port: 1")
    write("two/understudy.yaml", "port: 2\nhost: two")
    settings = load_settings([tmp_path / "one", tmp_path / "two"], {}, {})
    assert (settings.port, settings.host) == (1, "127.0.0.1")


def test_a_key_file_lies_beside_the_settings_file(write: Write, tmp_path: Path) -> None:
    write("understudy.yaml", "api_key_file: keys.txt")
    assert load_settings([tmp_path], {}, {}).api_key_file == tmp_path / "keys.txt"


@pytest.mark.parametrize(
    ("text", "env", "options", "words"),
    [
        ("prot: 1", {}, {}, ["understudy.yaml", "prot", "unknown key", "port"]),
        ("port: high", {}, {}, ["understudy.yaml", "port", "'high'"]),
        ("port: 70000", {}, {}, ["port", "65535"]),
        ("keepalive: 0", {}, {}, ["keepalive", "greater than 0"]),
        ("load_timeout: 1.0e+300", {}, {}, ["load_timeout", "31622400"]),
        ("shutdown_timeout: .nan", {}, {}, ["shutdown_timeout"]),
        ("max_queue: 99999999999", {}, {}, ["max_queue", "1000000"]),
        ("max_body_bytes: 9999TiB", {}, {}, ["max_body_bytes", "1099511627776"]),
        ("", {"UNDERSTUDY_PORT": "x"}, {}, ["UNDERSTUDY_PORT", "'x'"]),
        ("port: 1", {}, {"port": -1}, ["--port", "-1"]),
        ("cors_origins: [http://a/]", {}, {}, ["cors_origins.0", "'http://a/'"]),
        ("", {"UNDERSTUDY_CORS_ORIGINS": "http://a,b"}, {}, ["UNDERSTUDY_CORS_ORIGINS", "'b'"]),
        ("allowed_hosts: [a:8000]", {}, {}, ["allowed_hosts.0", "'a:8000'"]),
        ("", {"UNDERSTUDY_ALLOWED_HOSTS": "a,http://b"}, {}, ["ALLOWED_HOSTS", "'http://b'"]),
        ("- a", {}, {}, ["understudy.yaml", "list"]),
        ("a: [", {}, {}, ["understudy.yaml", "cannot be read"]),
    ],
)
def test_wrong_settings_are_told_with_their_place(
    write: Write,
    tmp_path: Path,
    text: str,
    env: dict[str, str],
    options: dict[str, Any],
    words: list[str],
) -> None:
    write("understudy.yaml", text)
    with pytest.raises(ConfigError) as told:
        load_settings([tmp_path], env, options)
    for word in words:
        assert word in str(told.value)


def test_folders_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "xdg" / "understudy").mkdir(parents=True)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert search_path(None, tmp_path, env) == [
        tmp_path / "configs",
        tmp_path / "xdg" / "understudy",
        packaged_folder().resolve(),
    ]
    own = tmp_path / "own"
    own.mkdir()
    assert search_path(own, tmp_path, env) == [own, packaged_folder().resolve()]
    with pytest.raises(ConfigError, match="no such folder"):
        search_path(tmp_path / "missing", tmp_path, env)
    assert search_path(packaged_folder(), tmp_path, {}) == [packaged_folder().resolve()]


def test_the_smallest_file_leaves_all_to_the_plan(write: Write) -> None:
    entry = read(write("models/small.yaml", "target: {source: owner/name}"))
    spec = entry.spec
    assert (entry.id, spec.id, spec.target) == ("small", "small", TargetSpec("owner/name"))
    assert spec.draft == DraftSpec()
    assert (spec.memory, spec.stream) == (MemorySpec(kv_disk=8 * 2**30), StreamSpec())
    assert (spec.device, spec.numerics, spec.context_length) == (None, None, None)


def test_a_full_file(write: Write) -> None:
    text = """
target:
  source: Qwen/Qwen2.5-7B-Instruct
  revision: main
  dtype: bfloat16
  rope: {factor: 4, original: 4096}
draft:  {method: subspec, bits: 4, depth: 48, width: 6}
device: cuda:0
memory: {device: 8GiB, ram: 24GiB, cache: 200GiB, kv_disk: 0}
stream: {tier: auto, resident: auto, slots: 3, simulate_gbps: null}
numerics: strict
context_length: 16384
max_sequences: auto
aliases: [gpt-4o-mini]
sampling: {temperature: 0.7, top_p: 0.8}
audit: 0.01
idle_unload: 10m
"""
    entry = read(write("models/qwen2.5-7b.yaml", text))
    spec = entry.spec
    assert (spec.target.dtype, spec.target.rope) == ("bfloat16", RopeSpec(4.0, 4096))
    assert spec.draft == DraftSpec(method="subspec", depth=48, width=6)
    assert spec.memory == MemorySpec(8 * 2**30, 24 * 2**30, 200 * 2**30, kv_disk=0)
    assert spec.stream == StreamSpec(slots=3)
    assert (spec.device, spec.numerics, spec.context_length) == ("cuda:0", "strict", 16384)
    assert (spec.audit, entry.idle_unload) == (0.01, 600)
    assert entry.aliases == ("gpt-4o-mini",)
    assert (entry.sampling.temperature, entry.sampling.top_p) == (0.7, 0.8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("draft: {method: none}", ["target", "required"]),
        ("target: {}", ["target.source", "required"]),
        ("target: {source: a/b, sauce: 1}", ["target.sauce", "unknown key", "source"]),
        ("target: {source: a/b, rope: {factor: 0.5}}", ["target.rope.factor", "0.5"]),
        ("target: {source: a/b, rope: {original: 2048}}", ["target.rope", "`factor`"]),
        ("target: {source: a/b, rope: {type: yarn}}", ["target.rope.type", "factor, original"]),
        ("target: {source: a/b}\ndraft: {method: magic}", ["draft.method", "specexec", "magic"]),
        ("target: {source: a/b}\ndraft: {method: specexec}", ["draft", "needs `source`"]),
        ("target: {source: a/b}\ndraft: {method: ngram, source: c/d}", ["draft", "specexec only"]),
        ("target: {source: a/b}\ndraft: {depth: 0}", ["draft.depth"]),
        ("target: {source: a/b}\ndraft: {budget: 1000000}", ["draft.budget", "4096"]),
        ("target: {source: a/b}\nmax_sequences: 5000", ["max_sequences", "4096"]),
        ("target: {source: a/b}\ncontext_length: 9999999999", ["context_length", "2147483647"]),
        ("target: {source: a/b}\nmemory: {ram: 2000TiB}", ["memory.ram", "1125899906842624"]),
        ("target: {source: a/b}\nmemory: {ram: \uff18GiB}", ["memory.ram", "is not a size"]),
        ("target: {source: a/b}\nstream: {simulate_gbps: 1.0e-9}", ["simulate_gbps", "0.000001"]),
        ("target: {source: a/b}\nstream: {simulate_gbps: .inf}", ["simulate_gbps", "1000000"]),
        ("target: {source: a/b}\nmemory: {device: 8 gigs}", ["memory.device", "is not a size"]),
        ("target: {source: a/b}\nmemory: {device: 1}", ["memory.device", "1048576"]),
        ("target: {source: a/b}\nstream: {slots: 1}", ["stream.slots"]),
        ("target: {source: a/b}\nstream: {tier: tape}", ["stream.tier", "'resident'"]),
        ("target: {source: a/b}\ndevice: tpu", ["device", "cuda:0"]),
        (
            "target: {source: a/b}\ndevice: cuda:0\nstream: {simulate_gbps: 2}",
            ["simulate_gbps needs device cpu"],
        ),
        ("target: {source: a/b}\nsampling: {temperature: 3}", ["sampling.temperature"]),
        ("target: {source: a/b}\nnumerics: loose", ["numerics"]),
        ("target: {source: a/b}\naudit: 1.5", ["audit", "less than or equal to 1"]),
        ("target: {source: a/b}\naudit: -0.1", ["audit"]),
        ("target: {source: a/b}\naudit: often", ["audit"]),
        (
            "target: {source: a/b}\nidle_unload: soon",
            ["idle_unload", "'soon' is not a time", "10m"],
        ),
        ("target: {source: a/b}\nidle_unload: 0", ["idle_unload", "equal to 1"]),
        ("target: {source: a/b}\nidle_unload: 9000d", ["idle_unload", "less than"]),
        ("target: {source: ./missing}", ["target.source", "./missing"]),
        ("target: {source: just-a-name}", ["target.source", "neither a folder, a GGUF file"]),
        ("target: {source: a/b}\nparsers: {tool: x}", ["parsers.tool", "unknown key", "reasoning"]),
        ("target: {source: a/b}\nparsers: {tools: think}", ["parsers.tools", "hermes", "think"]),
        ("target: {source: a/b}\nparsers: {reasoning: x}", ["parsers.reasoning", "none", "x"]),
        ("target: {source: a/b}\nchat_template: no.jinja", ["chat_template", "no.jinja"]),
    ],
)
def test_impossible_files_are_told_with_file_and_key(
    write: Write, text: str, words: list[str]
) -> None:
    path = write("models/bad.yaml", text)
    with pytest.raises(ConfigError) as told:
        read(path)
    for word in [str(path), *words]:
        assert word in str(told.value)


def test_sources_lie_beside_the_file_or_in_the_configuration_folder(
    write: Write, tmp_path: Path
) -> None:
    for folder in ("models/near", "far", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for source, folder in [
        ("near", "models/near"),
        ("../far", "far"),
        ("far", "far"),
        (str(tmp_path / "elsewhere"), "elsewhere"),
    ]:
        entry = read(write("models/m.yaml", f"target: {{source: {source}}}"))
        assert entry.spec.target.source == str(tmp_path / folder)


def test_a_template_is_text_or_a_file(write: Write) -> None:
    write("models/own.jinja", "[{{ messages }}]")
    base = "target: {source: a/b}\nchat_template: "
    assert read(write("models/a.yaml", base + "own.jinja")).chat_template == "[{{ messages }}]"
    inline = read(write("models/b.yaml", base + '"{{ messages[0].content }}"'))
    assert inline.chat_template == "{{ messages[0].content }}"


def test_parsers_are_chosen_by_the_template_or_by_name(write: Write) -> None:
    base = "target: {source: a/b}\nparsers: "
    assert read(write("models/a.yaml", base + "{tools: auto}")).parsers == ParsersSection()
    chosen = read(write("models/b.yaml", base + "{tools: mistral, reasoning: none}")).parsers
    assert (chosen.tools, chosen.reasoning) == ("mistral", "none")


def test_ids_are_file_names_and_may_have_slashes(write: Write, tmp_path: Path) -> None:
    write("models/one.yaml", "target: {source: a/b}")
    write("models/org/two.yaml", "target: {source: a/b}")
    assert [e.id for e in read_entries([tmp_path])] == ["one", "org/two"]
    write("models/no good.yaml", "target: {source: a/b}")
    with pytest.raises(ConfigError, match="file name"):
        read_entries([tmp_path])


def test_an_alias_belongs_to_one_model(write: Write, tmp_path: Path) -> None:
    write("models/one.yaml", "target: {source: a/b}")
    write("models/two.yaml", "target: {source: a/b}\naliases: [one]")
    with pytest.raises(ConfigError, match=re.compile(r"two\.yaml.*'one'.*one\.yaml", re.DOTALL)):
        read_entries([tmp_path])


def test_an_earlier_folder_wins(write: Write, tmp_path: Path) -> None:
    write("mine/models/demo.yaml", "target: {source: my/own}\naliases: [gpt]")
    write("base/models/demo.yaml", "target: {source: a/b}")
    write("base/models/more.yaml", "target: {source: a/b}\naliases: [gpt]")
    registry = Registry(read_entries([tmp_path / "mine", tmp_path / "base"]), "demo")
    assert registry.find("demo").spec.target.source == "my/own"
    assert registry.find("gpt").id == "demo"
    assert sorted(registry.entries) == ["demo", "more"]


def test_an_unknown_default_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"default_model.*'gone'"):
        Registry([], "gone")


def test_a_made_up_entry_and_its_file_are_the_same(write: Write, tmp_path: Path) -> None:
    (tmp_path / "My Model").mkdir()
    for model in ("owner/Some-7B", str(tmp_path / "My Model")):
        made = make_entry(model)
        path = write(f"models/{made.id}.yaml", entry_yaml(made, loaded("ngram")))
        spec = read_entry(path, made.id).spec
        assert spec == replace(made.spec, draft=DraftSpec(method="ngram"))
    assert make_entry("owner/Some-7B").id == "owner/Some-7B"
    assert make_entry(str(tmp_path / "My Model")).id == "My-Model"
    with pytest.raises(ConfigError, match="neither"):
        make_entry("nonsense")


def test_a_gguf_file_is_a_source_beside_the_file_and_on_the_command_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("models/My Model.Q4_K_M.gguf", "")
    made = make_entry(str(path))
    assert (made.id, made.spec.target.source) == ("My-Model.Q4_K_M", str(path))
    part = write("models/Split-00002-of-00003.gguf", "")
    assert make_entry(str(part)).id == "Split"
    monkeypatch.chdir(path.parent)
    assert make_entry(path.name).spec.target.source == str(path)
    named = write("models/m.yaml", f"target: {{source: {path.name}}}")
    assert read_entry(named, "m").spec.target.source == str(path)
    quantized = make_entry("owner/Some-7B:Q4_K_M")
    assert quantized.id == "owner/Some-7B-Q4_K_M"
    assert quantized.spec.target.source == "owner/Some-7B:Q4_K_M"
    with pytest.raises(ConfigError, match=r"neither a known model.*a GGUF file"):
        make_entry("missing.gguf")


def test_the_file_of_a_loaded_model_says_what_was_chosen(write: Write) -> None:
    made = make_entry("owner/Some-7B")
    info = loaded("subspec", sampling=(("temperature", 0.6), ("top_k", 20)))
    text = entry_yaml(made, info)
    assert text == (
        "target: {source: owner/Some-7B}\n"
        "draft: {method: subspec, bits: 4, group: 32}\n"
        "sampling: {temperature: 0.6, top_k: 20}\n"
    )
    entry = read_entry(write("models/m.yaml", text), "m")
    assert (entry.sampling.temperature, entry.sampling.top_k) == (0.6, 20)


def test_the_ranges_of_generation_config_are_those_of_the_file() -> None:
    for name, (least, most) in RANGES.items():
        for value in (least, min(most, 1000)):
            SamplingSection.model_validate({name: value})
        for value in (least - 1, most + 1) if most < 1000 else (least - 1,):
            with pytest.raises(ValidationError):
                SamplingSection.model_validate({name: value})


def test_a_chats_answer_is_limited_unless_the_file_lifts_the_limit(write: Write) -> None:
    head = "target: {source: a/b}\n"
    assert read(write("models/a.yaml", head)).sampling.max_tokens == 16_384
    lifted = read(write("models/b.yaml", head + "sampling: {max_tokens: null}"))
    assert lifted.sampling.max_tokens is None


def test_the_packaged_models_are_valid_and_demo_is_one() -> None:
    assert {"demo", "demo-64k", "demo-specexec", "demo-plain"} <= {
        e.id for e in read_entries([packaged_folder()])
    }


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
