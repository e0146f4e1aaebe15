"""The input of a custom tool is read alike however its arguments are cut."""

import pytest

from server.chat.custom_input import InputReader


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\nb"}', "a\nb"),
        ('{ "input" :"\\u00e9\\ud83d\\ude00 \\"\\\\" }', 'é😀 "\\'),
        ('{"input": "a\nb"}', "a\nb"),
        ('{"input": ""}', ""),
        ('{"input": "cut', "cut"),
        ('{"why": 1, "input": "x"}', "x"),
        ('{"patch": "x"}', '{"patch": "x"}'),
        ("{}", "{}"),
        ('{"input": 3}', '{"input": 3}'),
    ],
)
def test_the_input_is_read_alike_at_every_cut(arguments: str, text: str) -> None:
    for cut in range(len(arguments) + 1):
        reader = InputReader()
        pieces = [reader.feed(arguments[:cut]), reader.feed(arguments[cut:]), reader.finish()]
        assert "".join(pieces) == text, cut
    reader = InputReader()
    assert "".join([*map(reader.feed, arguments), reader.finish()]) == text
