"""Answers on a terminal: lines end between words, however the text arrives."""

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from server.cli.word_wrap import WordWrap

WIDTH = 21  # of which one column stays free


def shown(*pieces: str) -> list[str]:
    """Return the lines that a terminal shows of a text, without blanks at their ends."""
    out = StringIO()
    screen = Console(width=WIDTH, file=out, force_terminal=True, color_system=None)
    wrap = WordWrap(screen)
    for piece in pieces:
        wrap.write(Text(piece))
    lines = [""]
    text = out.getvalue()
    while text:
        if text.startswith("\x1b["):  # back by some columns, or erase to the end of the line
            end = next(at for at, letter in enumerate(text) if letter in "DK")
            if text[end] == "D":
                lines[-1] = lines[-1][: -int(text[2:end])]
            text = text[end + 1 :]
        elif text[0] == "\n":
            lines.append("")
            text = text[1:]
        else:
            lines[-1] += text[0]
            text = text[1:]
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("one two three four five six", ["one two three four", "five six"]),
        ("a line\n\nand another one\n", ["a line", "", "and another one", ""]),
        ("exactly twenty chars and on", ["exactly twenty chars", "and on"]),
        ("see extraordinarily-long-words here", ["see", "extraordinarily-long", "-words here"]),
        ("\u6771\u4eac" * 6, ["\u6771\u4eac" * 5, "\u6771\u4eac"]),
        (
            "ready e\u0301tudes and cafe\u0301 e\u0301",
            ["ready e\u0301tudes and", "cafe\u0301 e\u0301"],
        ),
        (
            "```\nprint('a line of code')\n```\nand then words again",
            [
                "```",
                "print('a line of code')",
                "```",
                "and then words again",
            ],
        ),
        ("    four blanks stay here", ["    four blanks stay", "here"]),
    ],
)
def test_lines_end_between_words(text: str, want: list[str]) -> None:
    assert shown(text) == want
    for size in (1, 2, 3, 7):
        assert shown(*(text[at : at + size] for at in range(0, len(text), size))) == want


def test_a_word_keeps_its_style_when_it_moves() -> None:
    out = StringIO()
    screen = Console(width=WIDTH, file=out, force_terminal=True, color_system="standard")
    wrap = WordWrap(screen)
    wrap.write(Text("seventeen letters "))
    wrap.write(Text("in", "bold"))
    wrap.write(Text("deed", "bold"))
    assert out.getvalue().endswith("\x1b[1min\x1b[0m\x1b[2D\x1b[0K\n\x1b[1mindeed\x1b[0m")
