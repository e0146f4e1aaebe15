"""Help, version, suggestions, and the scripts that complete commands in a shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from server.cli import main
from server.cli.arguments import SHELLS, build_parsers
from server.cli.completion import script
from server.config import files

Capture = pytest.CaptureFixture[str]


def completed(words: list[str]) -> list[str]:
    """Return what bash offers for the last of `words`."""
    line = " ".join(f"'{word}'" for word in words)
    command = (
        f"understudy() {{ printf 'demo\\nother\\n'; }}\n{script('bash', build_parsers())}\n"
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n"
        '_understudy; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["understudy", "se"], ["serve"]),
        (["understudy", "p"], ["ps", "plan", "pull", "prune"]),
        (["understudy", "serve", "--p"], ["--port"]),
        (["understudy", "stop", "d"], ["demo"]),
        (["understudy", "cluster", ""], ["serve", "--help"]),
        (["understudy", "cluster", "serve", "--rep"], ["--replicas"]),
        (["understudy", "cluster", "serve", "d"], ["demo"]),
        (["understudy", "help", "ver"], ["version"]),
        (["understudy", "completion", "z"], ["zsh"]),
        (["understudy", "nothing", ""], []),
    ],
)
def test_bash_completes(words: list[str], want: list[str]) -> None:
    assert completed(words) == want


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_with_every_command(shell: str, capsys: Capture) -> None:
    assert main.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in build_parsers().commands)
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n", "-c", text], check=True, capture_output=True)


def test_models_are_offered(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(files, "packaged_folder", lambda: tmp_path / "none")
    (tmp_path / "configs" / "models").mkdir(parents=True)
    (tmp_path / "configs" / "models" / "mine.yaml").write_text("target: {source: a/b}")
    assert main.main(["completion", "models"]) == 0
    assert capsys.readouterr().out == "mine\n"


def test_the_bare_command_prints_help(capsys: Capture) -> None:
    assert main.main([]) == 0
    assert main.main(["help"]) == 0
    whole = capsys.readouterr().out
    assert whole.count("usage: understudy [-h]") == 2 and "watch a server" in whole
    assert main.main(["help", "stop"]) == 0
    assert "usage: understudy stop" in capsys.readouterr().out


def test_the_version_is_a_command_too(capsys: Capture) -> None:
    assert main.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("understudy ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["srve"], "Did you mean serve?"),
        (["help", "plans"], "Did you mean plan"),
        (["xyzzy"], "There are: serve, "),
        (["serve", "--prot", "1"], "Did you mean --port"),
        (["serve", "--prot=1"], "unknown argument --prot. Did you mean --port"),
        (["plan", "demo", "extra"], "unknown argument extra."),
    ],
)
def test_a_word_that_is_not_known_gets_a_suggestion(
    capsys: Capture, arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "plan", "pull"])
def test_a_model_that_is_not_known_gets_a_suggestion(capsys: Capture, command: str) -> None:
    assert main.main([command, "demmo"]) == 1
    assert "Did you mean demo" in capsys.readouterr().err
