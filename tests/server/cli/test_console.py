"""The console and the commands escape control characters in untrusted names."""

import io
import json
from pathlib import Path

import pytest

from engine.errors import escaped
from engine.streaming import packed_cache
from server.cli import main
from server.cli.console import Console, table
from server.config import files
from server.schemas.status import LoadStep

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


def step(what: str, done: int, total: int, speed: float = 0.0) -> LoadStep:
    return {
        "what": what,
        "done": done,
        "total": total,
        "unit": "bytes",
        "per_second": speed,
        "seconds_left": (total - done) / speed if speed else None,
    }


def test_lines_and_progress_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    console = Console(terminal)
    console.progress(step(f"downloading {ESCAPE}", 1, 2))
    console.line(f"one {ESCAPE}\ntwo")
    bar = "━" * 12 + "─" * 12
    assert terminal.getvalue() == (
        f"\r\x1b[K  downloading {SHOWN}  {bar}   50 %  1 B of 2 B\r\x1b[Kone {SHOWN}\ntwo\n"
    )


def test_a_bar_on_a_terminal_has_amounts_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "99")
    terminal = Terminal()
    Console(terminal).progress(step("packing", 3_200_000_000, 7_600_000_000, 1.1e9))
    bar = "━" * 10 + "─" * 14
    assert terminal.getvalue() == (
        f"\r\x1b[K  packing  {bar}   42 %  3.2 GB of 7.6 GB  1.1 GB/s  4 s left"
    )
    monkeypatch.setenv("COLUMNS", "20")
    Console(narrow := Terminal()).progress(step("packing", 1, 2))
    assert len(narrow.getvalue()) == len("\r\x1b[K") + 19, "a longer line would wrap"


def test_progress_in_a_file_is_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    console = Console(log := io.StringIO())
    for percent in range(101):
        now = 0.2 * percent
        console.progress(step("packing", percent * 10**6, 10**8, 5e6))
        console.progress(step("packing", percent * 10**6, 10**8, 5e6))
    console.progress(step("loading the weights", 10**8, 10**8, 5e6))
    assert log.getvalue().splitlines() == [
        "  packing 0 %, 0 B of 100.0 MB, 5.0 MB/s, 20 s left",
        "  packing 25 %, 25.0 MB of 100.0 MB, 5.0 MB/s, 15 s left",
        "  packing 50 %, 50.0 MB of 100.0 MB, 5.0 MB/s, 10 s left",
        "  packing 75 %, 75.0 MB of 100.0 MB, 5.0 MB/s, 5 s left",
        "  packing 100 %, 100.0 MB of 100.0 MB, 5.0 MB/s",
        "  loading the weights 100 %, 100.0 MB of 100.0 MB, 5.0 MB/s",
    ]


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
