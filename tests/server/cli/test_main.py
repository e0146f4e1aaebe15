"""The output of the command line and its exit codes."""

import fcntl
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.streaming import packed_cache
from engine.weights import hub
from server.cli import main
from server.config import files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hide the real user's configuration and caches, and restore logging after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    for name in ("UNDERSTUDY_API_KEY", "UNDERSTUDY_CONFIG", "UNDERSTUDY_PORT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "packaged" / "models").mkdir(parents=True)
    (tmp_path / "packaged" / "models" / "demo.yaml").write_text("target: {source: de/mo}")
    monkeypatch.setattr(files, "packaged_folder", lambda: tmp_path / "packaged")
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("understudy").setLevel(logging.NOTSET)


Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["serve", "models", "pull", "prune"]),
        (["serve", "--help"], ["MODEL", "--api-key-file", "UNDERSTUDY_PORT", "hub id"]),
        (["--version"], ["understudy"]),
    ],
)
def test_help_names_the_commands_and_is_at_most_100_columns_wide(
    capsys: Capture, arguments: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words)
    assert max(len(line) for line in out.splitlines()) <= 100


def test_the_error_of_a_port_in_use_names_the_port(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main.main(["serve", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"port {port}" in error
    assert "in use" in error
    assert "--port" in error


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["plan", "demo"]])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "it is not a folder"),
        ("file/below", "Not a directory"),
        ("link", "it is not a folder"),
        ("/proc/understudy/cache", "No such file or directory"),
        ("/proc", "No such file or directory"),
        ("~nobody-has-this-name/cache", "home directory"),
    ],
)
def test_a_cache_that_cannot_be_used_is_named_before_anything_is_loaded(
    command: list[str],
    place: str,
    reason: str,
    capsys: Capture,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (home / "file").touch()
    (home / "link").symlink_to(home / "nothing")
    monkeypatch.setenv("UNDERSTUDY_CACHE", place)
    assert main.main(command) == 1
    error = capsys.readouterr().err
    assert f"UNDERSTUDY_CACHE: {place}: cannot be used" in error
    assert reason in error and "Set it to a folder" in error


def test_a_host_that_others_can_reach_needs_keys(capsys: Capture) -> None:
    assert main.main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert "UNDERSTUDY_API_KEY" in error
    assert "--insecure" in error


def test_a_key_on_the_command_line_is_used_with_a_warning(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken_port = ["--port", str(taken.getsockname()[1])]
        assert main.main(["serve", "--host", "0.0.0.0", "--api-key", "k", *taken_port]) == 1
    error = capsys.readouterr().err
    assert "list of processes" in error
    assert "in use" in error


def test_the_error_of_an_unknown_host_names_it(capsys: Capture) -> None:
    assert main.main(["serve", "--host", "no.such.host.invalid", "--insecure"]) == 1
    assert "no.such.host.invalid" in capsys.readouterr().err


def test_the_error_of_a_wrong_file_names_file_and_key(capsys: Capture, home: Path) -> None:
    (home / "configs" / "models").mkdir(parents=True)
    (home / "configs" / "models" / "bad.yaml").write_text("target: {source: a/b}\ndrafts: 1")
    assert main.main(["serve"]) == 1
    error = capsys.readouterr().err
    assert "bad.yaml: drafts: unknown key" in error
    assert "Traceback" not in error


def test_the_error_of_an_unknown_model_names_it(capsys: Capture) -> None:
    assert main.main(["serve", "not-a-model"]) == 1
    assert "not-a-model" in capsys.readouterr().err


def test_a_folder_with_the_id_of_another_model_is_refused(capsys: Capture, home: Path) -> None:
    folder = home / "elsewhere" / "demo"
    folder.mkdir(parents=True)
    assert main.main(["serve", str(folder), "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert str(folder) in error
    assert "'demo' is taken by" in error


def test_models_lists_every_model_of_the_registry(capsys: Capture, home: Path) -> None:
    (home / "configs" / "models").mkdir(parents=True)
    (home / "configs" / "models" / "mine.yaml").write_text("target: {source: a/b}")
    assert main.main(["models"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["mine"].split()[1:4] == ["a/b", "auto", "-"]
    assert "demo" in lines


def test_pull_downloads_target_and_draft(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "configs" / "models").mkdir(parents=True)
    (home / "configs" / "models" / "mine.yaml").write_text(
        "target: {source: a/b, revision: r1}\ndraft: {method: specexec, source: c/d}"
    )
    asked = []

    def resolve(source: str, revision: str | None, progress: object) -> hub.Resolved:
        asked.append((source, revision))
        return hub.Resolved(home / source, "identity")

    monkeypatch.setattr(hub, "resolve", resolve)
    assert main.main(["pull", "mine"]) == 0
    assert main.main(["pull", "some/other"]) == 0
    assert asked == [("a/b", "r1"), ("c/d", None), ("some/other", None)]
    assert f"a/b is at {home / 'a/b'}\n" in capsys.readouterr().err


def test_pull_of_an_unknown_model_fails(capsys: Capture) -> None:
    assert main.main(["pull", "some/model"]) == 1  # the tests run offline
    assert "some/model" in capsys.readouterr().err


def test_prune_asks_before_it_removes(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"is_packed": False, "is_usable": False}
    packed = [
        packed_cache.CacheEntry(Path("/cache/a"), "mine", 3 * 10**9, 0.0),
        packed_cache.CacheEntry(Path("/cache/b"), "other", 10**6, 0.0, **gone),
        packed_cache.CacheEntry(Path("/cache/c"), "third", 1, 0.0, is_packed=False, holds_kv=True),
    ]
    removed: list[packed_cache.CacheEntry] = []
    monkeypatch.setattr(packed_cache, "entries", lambda: packed)
    monkeypatch.setattr(packed_cache, "remove", removed.append)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert main.main(["prune"]) == 1
    assert removed == []
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert main.main(["prune"]) == 0
    assert removed == packed
    assert main.main(["prune", "--yes"]) == 0
    out = capsys.readouterr().out
    assert "3.0 GB" in out and "packed weights" in out and "a GGUF file that is gone" in out
    assert "KV of prompts and answers" in out


def test_prune_leaves_out_what_an_engine_uses(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    used, unused = tmp_path / "used", tmp_path / "unused"
    for folder in (used, unused):
        folder.mkdir()
        (folder / "index.json").write_text("{}")
    packed = [packed_cache.CacheEntry(path, path.name, 2, 0.0) for path in (used, unused)]
    monkeypatch.setattr(packed_cache, "entries", lambda: packed)
    with (used / "index.json").open() as index:
        fcntl.flock(index, fcntl.LOCK_SH)
        assert main.main(["prune", "--yes"]) == 0
    out, err = capsys.readouterr()
    assert used.exists() and not unused.exists()
    assert f"kept {used}: in use by a running engine" in err and "Removed 2 B" in out


def test_prune_without_input_asks_for_the_option_yes(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_of_input(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(
        packed_cache, "entries", lambda: [packed_cache.CacheEntry(Path("/a"), "m", 1, 0)]
    )
    monkeypatch.setattr("builtins.input", end_of_input)
    assert main.main(["prune"]) == 1
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "count"), [("plan", 1), ("serve", 1), ("completion", 0)])
def test_commands_warn_once_of_a_variable_that_is_not_known(
    command: str, count: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_PROT", "80")
    argument = "bash" if command == "completion" else "no-such-model"
    main.main([command, argument])
    assert (
        capsys.readouterr().err.count("warning: the environment variable UNDERSTUDY_PROT") == count
    )


@pytest.mark.parametrize("command", ["serve", "cluster serve"])
@pytest.mark.parametrize("place", ["option", "variable", "file"])
def test_in_a_json_log_every_line_is_json(
    command: str,
    place: str,
    capfd: Capture,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--log-format", "json"] if place == "option" else []
    if place == "variable":
        monkeypatch.setenv("UNDERSTUDY_LOG_FORMAT", "json")
    if place == "file":
        (home / "configs").mkdir()
        (home / "configs" / "understudy.yaml").write_text("log_format: json")
    monkeypatch.setenv("UNDERSTUDY_PROT", "80")
    assert main.main([*command.split(), "no-such-model", *options]) == 1
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    assert lines[0]["message"] == "Starting the server."
