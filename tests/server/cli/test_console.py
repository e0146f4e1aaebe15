"""The console and the commands escape control characters in untrusted names."""

import io
import json
from pathlib import Path

import pytest

from engine.errors import escaped
from engine.messages import LoadProgress
from engine.streaming import packed_cache
from server.cli import main
from server.cli.console import Console, table
from server.config import files

ESCAPE = "evil\x1b[2J\x9b1m\r\u202egnp\udc80"
SHOWN = "evil\\x1b[2J\\x9b1m\\r\\u202egnp\\udc80"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ESCAPE, SHOWN),
        ("Modell für Öl 模型 🙂", "Modell für Öl 模型 🙂"),
        ("a\nb\x00", "a\\nb\\x00"),
    ],
)
def test_characters_that_a_terminal_might_interpret_are_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_table_escapes_its_cells() -> None:
    assert table(("NAME", "SIZE"), [(ESCAPE, "1 B"), ("a\nb", "2 B")]).splitlines() == [
        "NAME".ljust(len(SHOWN)) + "  SIZE",
        f"{SHOWN}  1 B",
        "a\\nb".ljust(len(SHOWN)) + "  2 B",
    ]


def test_lines_and_progress_are_escaped() -> None:
    terminal = Terminal()
    console = Console(terminal)
    console.progress(LoadProgress(f"downloading {ESCAPE}", 1, 2))
    console.line(f"one {ESCAPE}\ntwo")
    assert terminal.getvalue() == (f"\r\x1b[K  downloading {SHOWN}  50 %\r\x1b[Kone {SHOWN}\ntwo\n")


def test_commands_escape_the_names_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(files, "packaged_folder", lambda: tmp_path)
    folder = tmp_path / "[red]m\x1b[2J"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "no\x1b[0m"}))
    entry = packed_cache.CacheEntry(folder, "m\x1b[2J", 1, 0.0)
    monkeypatch.setattr(packed_cache, "entries", lambda: [entry])
    monkeypatch.setattr(packed_cache, "remove", lambda entry: None)
    for command in (["models"], ["prune", "--yes"], ["plan", str(folder)], ["pull", str(folder)]):
        main.main(command)
        shown = "".join(capsys.readouterr())
        assert "[red]m\\x1b[2J" in shown and "\x1b" not in shown, command
