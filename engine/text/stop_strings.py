"""The search for stop strings in the content of an answer, while its text arrives."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from engine.errors import PassFailed
from engine.parsing.parser import Parser, Piece, PlainText, merge


class Scanned(NamedTuple):
    """The effect of more text.

    Args:
        shown: the text that may be shown now.
        stop: the stop string that was found, which ends the answer after `shown`.
        lookahead: the text after `shown` that the parser has read when the string was found.
    """

    shown: str
    stop: str | None = None
    lookahead: str = ""


class StopStrings:
    """A search for stop strings in one answer.

    A stop string counts as soon as a parser is certain that it is content. It lies within one
    stretch of content: reasoning, calls and their markup contain none, and none goes across them.
    If several are completed, the one that is complete first counts; of those complete at the same
    character, the longest.

    Args:
        stops: the stop strings.
        new_parser: makes the parser of the answer; None if all text is content.
    """

    def __init__(self, stops: Collection[str], new_parser: Callable[[], Parser] | None) -> None:
        # by their first character: of many strings, few are compared with each character
        self._strings: dict[str, list[str]] = {}
        for stop in filter(None, dict.fromkeys(stops)):
            self._strings.setdefault(stop[0], []).append(stop)
        self._longest = max(map(len, stops), default=0)
        self._new_parser = new_parser
        self._parser: Parser | None = None  # made with the first text
        self._held = ""  # the end of the text, which may not be shown yet
        self._num_begun = 0  # its first characters, which are content that may begin a stop string
        self._num_exempt = 0  # its first characters, within which no stop string can end

    def scan(self, text: str, *, is_counted: bool, is_last: bool) -> Scanned:
        """Add more of the answer. After a stop string or the last text, nothing may be added.

        Args:
            is_counted: whether stop strings that end in `text` count.
            is_last: whether the answer ends with `text`.

        Raises `PassFailed` if the parser fails.
        """
        if not self._strings:
            return Scanned(text)
        self._held += text
        if not is_counted:
            self._num_exempt = len(self._held)
        start, end = 0, self._num_begun  # of the content in which a stop string may begin
        for piece in merge(self._parse(text, is_last)):
            end += piece.width
            if piece.kind != "content":
                start = end
                continue
            content = self._held[start:end]
            found = self._find(content, self._num_exempt - start)
            if found is not None:
                cut, stop = start + found[0], found[1]
                lookahead = "" if self._new_parser is None else self._held[cut:]
                return Scanned(self._held[:cut], stop, lookahead)
            start = end - self._num_begun_in(content)
        if is_last:
            return Scanned(self._held)
        shown, self._held = self._held[:start], self._held[start:]
        self._num_begun = end - start
        self._num_exempt = max(0, self._num_exempt - start)
        return Scanned(shown)

    def _parse(self, text: str, is_last: bool) -> list[Piece]:
        try:
            if self._parser is None:
                self._parser = PlainText() if self._new_parser is None else self._new_parser()
            pieces = self._parser.feed(text)
            return [*pieces, *self._parser.finish()] if is_last else pieces
        except Exception as error:  # a mistake in a parser must not end the engine
            raise PassFailed(
                "The answer cannot be searched for stop strings, because its parser failed: "
                f"{type(error).__name__}: {error}. Report this, or send the request without 'stop'",
                "answer_unreadable",
            ) from error

    def _find(self, content: str, num_exempt: int) -> tuple[int, str] | None:
        """Return the stop string in `content` that counts, after its place; None if there is none.

        It ends after the first `num_exempt` characters.
        """
        ends = [
            (start + len(stop), -len(stop), stop)
            for start, character in enumerate(content)
            for stop in self._strings.get(character, ())
            if start + len(stop) > num_exempt and content.startswith(stop, start)
        ]
        if not ends:
            return None
        end, _, stop = min(ends)
        return end - len(stop), stop

    def _num_begun_in(self, content: str) -> int:
        """Return the length of the longest end of `content` that may grow to a stop string."""
        for start in range(max(0, len(content) - self._longest + 1), len(content)):
            stops = self._strings.get(content[start])
            if stops is None:
                continue
            end = content[start:]
            if any(len(stop) > len(end) and stop.startswith(end) for stop in stops):
                return len(end)
        return 0
